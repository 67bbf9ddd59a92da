# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The small operations of a decoder layer in a decode step on the CPU, compiled by numba.

They are what lies between the products with weights and the attention: norms, residual sums, rotary embeddings, the
activation of an MLP. Each takes its arguments from an array of int64, and threads take *lines* from a counter; a line
is one token. Activations are float32; weights and cached keys are float32 or bfloat16. Real numbers among the
arguments are the bits of a float32.
"""

import numpy as np
from numba import types

from .code_cache import cfunc, njit
from .numba_memory import (
    FAST_MATH,
    fetch_add,
    float32_at,
    float32_of,
    int32_at,
    int64_at,
    store,
    uint8_at,
    uint16_at,
    uint32_at,
    widen,
)
from .numba_mlp import _activate, _keep, _quantize


(NEXT, LINES, CHANNELS, IS_HALF) = range(4)
"""Of every operation: the counter of tasks; lines; numbers in a line; whether small weights are bfloat16."""

(STREAM, ADDED, ADDED_STRIDE, FACTOR, INNER, INNER_OFFSET, INNER_EPSILON) = range(4, 11)
(OUTER, OUTER_OFFSET, OUTER_EPSILON, OUTER_BIAS, IS_CENTERED, TARGET, TARGET_STRIDE, JOIN_HEADER) = range(11, 19)
"""Of [`join`]: the residual stream; what is added to it, its stride, its factor and the norm of it; the norm of the
sum; whether that subtracts means; where it goes to."""

(QUERY, QUERY_STRIDE, KEY, KEY_STRIDE, VALUE, VALUE_STRIDE) = range(4, 10)
(HEADS, KV_HEADS, DIM, VALUE_DIM, ROTATED, COSINES, SINES, PLACES) = range(10, 18)
(QUERY_NORM, KEY_NORM, HEAD_OFFSET, HEAD_EPSILON, KEYS, VALUES, CAPACITY, SLOT, TOKENS) = range(18, 27)
(TURNS_NEIGHBOURS, ROTATE_HEADER) = range(27, 29)
"""Of [`rotate`]: products of the layer and their strides; shapes; numbers of a head that are rotated, tables, and the
places of the lines in them; norms of heads; where keys and values go to, the slot of a row's first line, and the lines
of a row; whether two neighbouring numbers are turned together, not those at the same place of both halves."""

(SUM, SUM_STRIDE, BIAS, BIAS_HEADER) = range(4, 8)
"""Of [`add_bias`]: the lines, their stride, and the bias."""

(SOURCE, KEPT, FRACTIONS, IN_USE, LISTED, NUMBER_AT, KEEP_HEADER) = range(4, 11)
"""Of [`keep`]: input and output, shares to keep, scratch, the list of channels that any line keeps, and the address of
their number."""

(FROM, FROM_STRIDE, TO, TO_STRIDE, ORDER, IS_BACK, MOVE_HEADER) = range(4, 11)
"""Of [`move`]: lines and their strides, the number of the line that goes to every place, and whether they go back."""

(QUANTIZED, QUANTIZED_STRIDE, LEVELS, QUANTIZE_HEADER) = range(4, 8)
"""Of [`quantize`]: the lines, their stride, and the bits of each."""

(GATE, GATE_STRIDE, UP, UP_STRIDE, HIDDEN, HIDDEN_STRIDE, KIND, PART, GATE_HEADER) = range(4, 13)
"""Of [`gate`]: products before the activation, and neurons; strides; the activation; neurons in a task."""

ZERO, ONE = np.float32(0.0), np.float32(1.0)


@njit(fastmath=FAST_MATH, error_model="numpy")
def _spread_of(x, begin, count, mean):
    total = ZERO
    for i in range(count):
        d = x[begin + i] - mean
        total += d * d
    return total / np.float32(count)


@njit(fastmath=FAST_MATH, error_model="numpy")
def _mean_of(x, begin, count):
    total = ZERO
    for i in range(count):
        total += x[begin + i]
    return total / np.float32(count)


@njit(fastmath=FAST_MATH, error_model="numpy")
def _join_line(args, line, inner, outer, bias):
    count = args[CHANNELS]
    stream, target = float32_at(args[STREAM] + 4 * line * count), float32_at(args[TARGET])
    if args[ADDED]:
        added, factor = float32_at(args[ADDED] + 4 * line * args[ADDED_STRIDE]), float32_of(args[FACTOR])
        if args[INNER]:
            offset = float32_of(args[INNER_OFFSET])
            factor *= ONE / np.sqrt(_spread_of(added, 0, count, ZERO) + float32_of(args[INNER_EPSILON]))
            for i in range(count):
                stream[i] += added[i] * factor * (offset + widen(inner[i]))
        else:
            for i in range(count):
                stream[i] += added[i] * factor
    begin = line * args[TARGET_STRIDE]
    if args[OUTER]:
        mean = _mean_of(stream, 0, count) if args[IS_CENTERED] else ZERO
        scale = ONE / np.sqrt(_spread_of(stream, 0, count, mean) + float32_of(args[OUTER_EPSILON]))
        offset = float32_of(args[OUTER_OFFSET])
        for i in range(count):
            target[begin + i] = (stream[i] - mean) * scale * (offset + widen(outer[i]))
        if args[OUTER_BIAS]:
            for i in range(count):
                target[begin + i] += widen(bias[i])
    elif args[TARGET]:
        for i in range(count):
            target[begin + i] = stream[i]


@njit(error_model="numpy")
def _join(args, inner, outer, bias):
    while True:
        line = fetch_add(args, NEXT, 1)
        if line >= args[LINES]:
            return
        _join_line(args, line, inner, outer, bias)


_SIGNATURE = types.void(types.CPointer(types.int64))


@cfunc(_SIGNATURE, error_model="numpy")
def join(args):
    """Add a branch to the residual stream, and write the norm of the sum."""
    if args[IS_HALF]:
        _join(args, uint16_at(args[INNER]), uint16_at(args[OUTER]), uint16_at(args[OUTER_BIAS]))
    else:
        _join(args, float32_at(args[INNER]), float32_at(args[OUTER]), float32_at(args[OUTER_BIAS]))


@njit(fastmath=FAST_MATH, error_model="numpy")
def _turn(args, x, norm, cosines, sines):
    """Norm of a head, if there is one, and the rotation of its first numbers, in place."""
    dim, half = args[DIM], args[ROTATED] // 2
    if args[QUERY_NORM]:
        scale = ONE / np.sqrt(_spread_of(x, 0, dim, ZERO) + float32_of(args[HEAD_EPSILON]))
        offset = float32_of(args[HEAD_OFFSET])
        for i in range(dim):
            x[i] *= scale * (offset + widen(norm[i]))
    if args[TURNS_NEIGHBOURS]:
        for i in range(half):
            a, b = x[2 * i], x[2 * i + 1]
            x[2 * i] = a * cosines[2 * i] - b * sines[2 * i]
            x[2 * i + 1] = b * cosines[2 * i + 1] + a * sines[2 * i + 1]
        return
    for i in range(half):
        a, b = x[i], x[half + i]
        x[i] = a * cosines[i] - b * sines[i]
        x[half + i] = b * cosines[half + i] + a * sines[half + i]


@njit(fastmath=FAST_MATH, error_model="numpy")
def _rotate(args, query_norm, key_norm, keys, values, places):
    """Tasks: key-value head by key-value head of every line, with the query heads of its group."""
    kv_heads, group = args[KV_HEADS], args[HEADS] // args[KV_HEADS]
    dim, value_dim, tasks = args[DIM], args[VALUE_DIM], args[LINES] * args[KV_HEADS]
    while True:
        task = fetch_add(args, NEXT, 1)
        if task >= tasks:
            return
        line, head = task // kv_heads, task % kv_heads
        table = 4 * places[line] * args[ROTATED]
        cosines, sines = float32_at(args[COSINES] + table), float32_at(args[SINES] + table)
        for g in range(group):
            begin = line * args[QUERY_STRIDE] + (head * group + g) * dim
            _turn(args, float32_at(args[QUERY] + 4 * begin), query_norm, cosines, sines)
        key = float32_at(args[KEY] + 4 * (line * args[KEY_STRIDE] + head * dim))
        _turn(args, key, key_norm, cosines, sines)
        value = float32_at(args[VALUE] + 4 * (line * args[VALUE_STRIDE] + head * value_dim))
        row, token = line // args[TOKENS], line % args[TOKENS]
        slot = (row * kv_heads + head) * args[CAPACITY] + args[SLOT] + token
        for i in range(dim):
            store(keys, slot * dim + i, key[i])
        for i in range(value_dim):
            store(values, slot * value_dim + i, value[i])


@njit(error_model="numpy")
def _rotate_into(args, keys, values):
    places = int64_at(args[PLACES])
    if args[IS_HALF]:
        _rotate(args, uint16_at(args[QUERY_NORM]), uint16_at(args[KEY_NORM]), keys, values, places)
    else:
        _rotate(args, float32_at(args[QUERY_NORM]), float32_at(args[KEY_NORM]), keys, values, places)


@cfunc(_SIGNATURE, error_model="numpy")
def rotate_float32(args):
    """Rotate queries and keys, and write keys and values to a cache in float32."""
    _rotate_into(args, float32_at(args[KEYS]), float32_at(args[VALUES]))


@cfunc(_SIGNATURE, error_model="numpy")
def rotate_bfloat16(args):
    """Rotate queries and keys, and write keys and values to a cache in bfloat16."""
    _rotate_into(args, uint16_at(args[KEYS]), uint16_at(args[VALUES]))


@cfunc(_SIGNATURE, fastmath=FAST_MATH, error_model="numpy")
def gate(args):
    """`activation(gate) * up`, or `activation(gate)`, a part of a line at a time."""
    channels, part = args[CHANNELS], args[PART]
    parts = (channels + part - 1) // part
    while True:
        task = fetch_add(args, NEXT, 1)
        if task >= args[LINES] * parts:
            return
        line, begin = task // parts, task % parts * part
        count = min(part, channels - begin)
        gated = float32_at(args[GATE] + 4 * (line * args[GATE_STRIDE] + begin))
        hidden = float32_at(args[HIDDEN] + 4 * (line * args[HIDDEN_STRIDE] + begin))
        _activate(args[KIND], gated, 0, count)
        if args[UP]:
            up = float32_at(args[UP] + 4 * (line * args[UP_STRIDE] + begin))
            for i in range(count):
                hidden[i] = gated[i] * up[i]
        else:
            for i in range(count):
                hidden[i] = gated[i]


@njit(fastmath=FAST_MATH, error_model="numpy")
def _add_bias(args, bias):
    while True:
        line = fetch_add(args, NEXT, 1)
        if line >= args[LINES]:
            return
        sums = float32_at(args[SUM] + 4 * line * args[SUM_STRIDE])
        for i in range(args[CHANNELS]):
            sums[i] += widen(bias[i])


@cfunc(_SIGNATURE, error_model="numpy")
def add_bias(args):
    """Add a bias to every line."""
    if args[IS_HALF]:
        _add_bias(args, uint16_at(args[BIAS]))
    else:
        _add_bias(args, float32_at(args[BIAS]))


@cfunc(_SIGNATURE, error_model="numpy")
def keep(args):
    """Keep the largest channels of all lines, by one thread."""
    if fetch_add(args, NEXT, 1) == 0:
        number = _keep(
            uint32_at(args[SOURCE]),
            uint32_at(args[KEPT]),
            args[LINES],
            args[CHANNELS],
            float32_at(args[FRACTIONS]),
            1,
            np.uint32(0x7FFFFFFF),
            31,
            uint8_at(args[IN_USE]),
            int32_at(args[LISTED]),
        )
        int64_at(args[NUMBER_AT])[0] = number


@cfunc(_SIGNATURE, error_model="numpy")
def quantize(args):
    """Round every line to its bits and back, in place."""
    while True:
        line = fetch_add(args, NEXT, 1)
        if line >= args[LINES]:
            return
        x = float32_at(args[QUANTIZED] + 4 * line * args[QUANTIZED_STRIDE])
        _quantize(x, x, 1, args[CHANNELS], float32_at(args[LEVELS] + 4 * line), 1)


@cfunc(_SIGNATURE, error_model="numpy")
def move(args):
    """Copy lines into another order, or back."""
    order = int64_at(args[ORDER])
    while True:
        line = fetch_add(args, NEXT, 1)
        if line >= args[LINES]:
            return
        source, target = (line, order[line]) if args[IS_BACK] else (order[line], line)
        x = float32_at(args[FROM] + 4 * source * args[FROM_STRIDE])
        y = float32_at(args[TO] + 4 * target * args[TO_STRIDE])
        for i in range(args[CHANNELS]):
            y[i] = x[i]
