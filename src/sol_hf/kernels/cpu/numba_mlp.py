# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The MLP of a decode step on the CPU, compiled by numba: choose channels, multiply, quantize.

The time of a product with one token is the time to read the weights. The weights of gate and up are stored in blocks
of outputs, and within a block input-major: the weights of a channel are contiguous, and only those of kept channels
are read. Without the blocks the weights of two channels would be far apart in memory, which halves the bandwidth.

    block 0 (channels, block)    | kept     ------------- |    the sums of a block stay in the L1 cache, while the
                                 | not read               |    weights of kept channels are added to them, four
                                 | kept     ------------- |    channels at a time
    block 1 (channels, block)    | kept     ------------- |
                                 ...

The last projection over kept neurons works in the same way: its input channels are the neurons. Weights that are
stored input-major in one piece, such as those of `Conv1D`, are read where they are, with a stride.

The weights of a channel are read if any token keeps it; for the other tokens its input is zero. Sums are in float32,
also for bfloat16 weights. All arguments are in one array of int64: addresses, sizes, and the counter from which
threads take their blocks. A *line* is the input or output of one token.
"""

import math

import numpy as np
from numba import types

from .code_cache import cfunc, njit
from .numba_memory import (
    FAST_MATH,
    exp_of_negative,
    fetch_add,
    float32_at,
    int32_at,
    power_of_two,
    prefetch,
    store,
    uint8_at,
    uint16_at,
    uint32_at,
    widen,
)


(INPUT, LINES, CHANNELS, WIDTH, LISTED, NUMBER, GATE, UP, GATE_BIAS, UP_BIAS) = range(10)
(HIDDEN, UP_SUMS, ACTIVATION, DOWN, DOWN_BIAS, OUTPUT, OUTPUTS, BLOCK, NEXT, STRIDE) = range(10, 20)
HEADER = 20

ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu")
SILU, GELU, GELU_TANH, _ = range(4)
ZERO, ONE, HALF = np.float32(0.0), np.float32(1.0), np.float32(0.5)
ROOT_HALF, TANH_SCALE, CUBIC = np.float32(0.7071067811865476), np.float32(1.5957691216057308), np.float32(0.044715)
SLACK = np.float32(1.0 - 1e-6)
LEAST_MAXIMUM = np.float32(1e-8)
TO_WHOLE = np.float32(12582912.0)
"""1.5 * 2^23: adding and subtracting it rounds a float32 below 2^22 to a whole number, half to even."""
DENSE_BITS = 16
CACHE_LINE = 64
AHEAD = 4
"""Kept channels between those in use and those that are prefetched."""
_KEEP = "int64(int64, int64, int64, int64, int64, int64, int64, int64)"
_QUANTIZE = "void(int64, int64, int64, int64, int64, int64)"


@njit(nogil=True)
def _threshold(words, begin, channels, count, magnitude, digits):
    """The largest threshold that at least `count` magnitudes reach, found bit by bit.

    The bits of a float without its sign have the order of its magnitude; NaN is the largest.
    """
    least = np.uint32(0)
    for digit in range(digits - 1, -1, -1):
        candidate, reached = np.uint32(least | np.uint32(1 << digit)), np.uint32(0)
        for i in range(channels):
            reached = np.uint32(reached + (np.uint32(words[begin + i] & magnitude) >= candidate))
        if reached >= count:
            least = candidate
        if reached == count:
            break
    return least


@njit(nogil=True)
def _keep(words, kept, lines, channels, fractions, lines_each, magnitude, digits, in_use, listed):
    """Copy the largest channels of every line, zero the others, and list those that any line keeps."""
    for i in range(channels):
        in_use[i] = 0
    for line in range(lines):
        begin = line * channels
        share = fractions[line // lines_each] * np.float32(channels) * SLACK
        count = max(int(math.ceil(share)), 1)
        least, ties = np.uint32(0), channels
        if count < channels:
            least = _threshold(words, begin, channels, np.uint32(count), magnitude, digits)
            larger = np.uint32(0)
            for i in range(channels):
                larger = np.uint32(larger + (np.uint32(words[begin + i] & magnitude) > least))
            ties = count - int(larger)
        for i in range(channels):
            word = words[begin + i]
            key = np.uint32(word & magnitude)
            tied = key == least and ties > 0
            ties -= tied
            chosen = tied or key > least
            kept[begin + i] = word if chosen else 0
            in_use[i] |= chosen
    number = 0
    for i in range(channels):
        listed[number] = i
        number += in_use[i]
    return number


@njit(_KEEP, nogil=True)
def keep_float32(words, kept, lines, channels, fractions, lines_each, in_use, listed):
    """[`_keep`] of float32 at addresses; `listed` has one entry more than there are channels."""
    magnitude = np.uint32(0x7FFFFFFF)
    source, target, settings = uint32_at(words), uint32_at(kept), float32_at(fractions)
    flags, numbers = uint8_at(in_use), int32_at(listed)
    return _keep(source, target, lines, channels, settings, lines_each, magnitude, 31, flags, numbers)


@njit(_KEEP, nogil=True)
def keep_bfloat16(words, kept, lines, channels, fractions, lines_each, in_use, listed):
    """[`_keep`] of bfloat16 at addresses."""
    magnitude = np.uint32(0x7FFF)
    source, target, settings = uint16_at(words), uint16_at(kept), float32_at(fractions)
    flags, numbers = uint8_at(in_use), int32_at(listed)
    return _keep(source, target, lines, channels, settings, lines_each, magnitude, 15, flags, numbers)


@njit(nogil=True)
def _quantize(source, target, lines, channels, bits, lines_each):
    """[`fake_quantize`], operation by operation, so that the results are the same to the bit."""
    for line in range(lines):
        begin, wanted = line * channels, np.int32(bits[line // lines_each])
        if wanted >= DENSE_BITS:
            for i in range(channels):
                target[begin + i] = source[begin + i]
            continue
        largest, has_nan = ZERO, False
        for i in range(channels):
            x = abs(widen(source[begin + i]))
            largest = max(largest, x)
            has_nan |= x != x
        limit = power_of_two(np.int32(wanted - 1)) - ONE
        scale = max(largest, LEAST_MAXIMUM) / limit
        if has_nan:
            scale = np.float32(np.nan)
        for i in range(channels):
            rounded = (widen(source[begin + i]) / scale + TO_WHOLE) - TO_WHOLE
            clamped = min(max(rounded, -limit), limit)
            store(target, begin + i, (clamped if rounded == rounded else rounded) * scale)


@njit(_QUANTIZE, nogil=True)
def quantize_float32(source, target, lines, channels, bits, lines_each):
    """[`_quantize`] of float32 at addresses."""
    _quantize(float32_at(source), float32_at(target), lines, channels, float32_at(bits), lines_each)


@njit(_QUANTIZE, nogil=True)
def quantize_bfloat16(source, target, lines, channels, bits, lines_each):
    """[`_quantize`] of bfloat16 at addresses."""
    _quantize(uint16_at(source), uint16_at(target), lines, channels, float32_at(bits), lines_each)


@njit(error_model="numpy")
def _ask_for_lines(listed, k, last, address, span_bytes, length):
    """Prefetch the weights of the four channels from `k` on: their distances are not regular, so no processor does."""
    for n in range(k, min(k + 4, last + 1)):
        line = address + listed[n] * span_bytes
        for byte in range(0, length, CACHE_LINE):
            prefetch(line + byte)


@njit(fastmath=FAST_MATH)
def _add_lines(args, weights, size, bias, begin, end, sums):
    """Outputs `begin` to `end` of the product of every line of input with the kept lines of `weights`.

    With a stride they are `(channels, stride)` in one piece, else in blocks. With their `size` in bytes they are
    prefetched, which pays where the weights of a channel are few, as those of the last projection.
    """
    lines, channels, width, number = args[LINES], args[CHANNELS], args[WIDTH], args[NUMBER]
    inputs, listed = float32_at(args[INPUT]), int32_at(args[LISTED])
    span = args[STRIDE] if args[STRIDE] else end - begin
    place = 0 if args[STRIDE] else begin * channels - begin
    for line in range(lines):
        for j in range(begin, end):
            sums[line * width + j] = ZERO
    k = 0
    first, stride, length = args[GATE] + (place + begin) * size, span * size, (end - begin) * size
    while k < number:
        if size:
            _ask_for_lines(listed, k + AHEAD, number - 1, first, stride, length)
        # Past the end the last channel is used again, with an input of zero.
        last = number - 1
        i0, i1, i2, i3 = listed[k], listed[min(k + 1, last)], listed[min(k + 2, last)], listed[min(k + 3, last)]
        w0, w1, w2, w3 = place + i0 * span, place + i1 * span, place + i2 * span, place + i3 * span
        for line in range(lines):
            x, base = line * channels, line * width
            a, b, c, d = inputs[x + i0], inputs[x + i1], inputs[x + i2], inputs[x + i3]
            b, c, d = b if k + 1 <= last else ZERO, c if k + 2 <= last else ZERO, d if k + 3 <= last else ZERO
            if a == ZERO and b == ZERO and c == ZERO and d == ZERO:
                continue
            for j in range(begin, end):
                left = a * widen(weights[w0 + j]) + b * widen(weights[w1 + j])
                right = c * widen(weights[w2 + j]) + d * widen(weights[w3 + j])
                sums[base + j] += left + right
        k += 4
    if args[bias] != 0:
        offsets = float32_at(args[bias])
        for line in range(lines):
            for j in range(begin, end):
                sums[line * width + j] += offsets[j]


@njit(fastmath=FAST_MATH)
def _sigmoid(x):
    small = exp_of_negative(-abs(x))
    return (ONE if x >= ZERO else small) / (ONE + small)


@njit(fastmath=FAST_MATH)
def _activate(kind, values, begin, end):
    if kind == SILU:
        for j in range(begin, end):
            values[j] *= _sigmoid(values[j])
    elif kind == GELU:
        for j in range(begin, end):
            values[j] *= HALF * (ONE + math.erf(values[j] * ROOT_HALF))
    elif kind == GELU_TANH:  # tanh(y) = 2 sigmoid(2y) - 1
        for j in range(begin, end):
            x = values[j]
            values[j] = x * _sigmoid(TANH_SCALE * (x + CUBIC * x * x * x))
    else:
        for j in range(begin, end):
            values[j] = max(values[j], ZERO)


@njit(fastmath=FAST_MATH)
def _expand(args, gate, up):
    """`activation(gate) * up` of all lines, one block of outputs at a time."""
    width, block = args[WIDTH], args[BLOCK]
    hidden, up_sums = float32_at(args[HIDDEN]), float32_at(args[UP_SUMS])
    while True:
        begin = fetch_add(args, NEXT, block)
        if begin >= width:
            return
        end = min(begin + block, width)
        _add_lines(args, gate, 0, GATE_BIAS, begin, end, hidden)
        if args[UP] != 0:
            _add_lines(args, up, 0, UP_BIAS, begin, end, up_sums)
        for line in range(args[LINES]):
            base = line * width
            _activate(args[ACTIVATION], hidden, base + begin, base + end)
            if args[UP] != 0:
                for j in range(base + begin, base + end):
                    hidden[j] *= up_sums[j]


@njit(fastmath=FAST_MATH)
def _contract(args, down, output):
    """The product with the last projection, whose weights are output-major, `(outputs, width)`."""
    width, outputs, block = args[WIDTH], args[OUTPUTS], args[BLOCK]
    hidden, bias = float32_at(args[HIDDEN]), float32_at(args[DOWN_BIAS])
    while True:
        begin = fetch_add(args, NEXT, block)
        if begin >= outputs:
            return
        for j in range(begin, min(begin + block, outputs)):
            offset = bias[j] if args[DOWN_BIAS] != 0 else ZERO
            for line in range(args[LINES]):
                total = ZERO
                for i in range(width):
                    total += hidden[line * width + i] * widen(down[j * width + i])
                store(output, line * outputs + j, total + offset)


@njit(fastmath=FAST_MATH)
def _project(args, weights, size, output):
    """The product with the kept lines of one matrix, one block of outputs at a time; a weight has `size` bytes."""
    width, block, sums = args[WIDTH], args[BLOCK], float32_at(args[HIDDEN])
    while True:
        begin = fetch_add(args, NEXT, block)
        if begin >= width:
            return
        end = min(begin + block, width)
        _add_lines(args, weights, size, GATE_BIAS, begin, end, sums)
        for line in range(args[LINES]):
            for j in range(line * width + begin, line * width + end):
                store(output, j, sums[j])


@cfunc(types.void(types.CPointer(types.int64)))
def expand_float32(args):
    _expand(args, float32_at(args[GATE]), float32_at(args[UP]))


@cfunc(types.void(types.CPointer(types.int64)))
def expand_bfloat16(args):
    _expand(args, uint16_at(args[GATE]), uint16_at(args[UP]))


@cfunc(types.void(types.CPointer(types.int64)))
def contract_float32(args):
    _contract(args, float32_at(args[DOWN]), float32_at(args[OUTPUT]))


@cfunc(types.void(types.CPointer(types.int64)))
def contract_bfloat16(args):
    _contract(args, uint16_at(args[DOWN]), uint16_at(args[OUTPUT]))


@cfunc(types.void(types.CPointer(types.int64)))
def project_float32(args):
    _project(args, float32_at(args[GATE]), 4, float32_at(args[OUTPUT]))


@cfunc(types.void(types.CPointer(types.int64)))
def project_bfloat16(args):
    _project(args, uint16_at(args[GATE]), 2, float32_at(args[OUTPUT]))
