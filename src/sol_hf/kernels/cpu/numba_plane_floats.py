# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Lines times a tile of 16 outputs in nested planes, for processors without dot products of bytes.

A byte of a code, or the nibble of the first plane alone, is used where it is: an exponent above it makes it the
float32 `2^n + code`, from which a constant is subtracted. What is left is exact, and half a cell below the middle;
half a cell times the sum of the inputs of the block is added.
"""

import functools

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ...selection.nested_planes import CHANNELS, CODE_BITS, GROUP, PLANES
from .code_cache import njit
from .numba_memory import FAST_MATH, float32_at
from .numba_plane_words import (
    HALVES,
    NUMBERS,
    WORDS,
    code_bytes,
    every,
    every_number,
    load_block,
    load_scale,
    planes_read,
    spread,
)
from .numba_vectors import FLOAT, LONG, add_product


LINES = (4, 2, 1)
"""Numbers of lines for which a weight is put together once."""
CHAINS = 2
"""Sums of a line within a block, of channels with even numbers and of the others: a product need not wait for the one
before. The sums of four lines do not fit into 16 registers together, so one comes after the other."""
MANTISSA, BIAS = 23, 127
"""Bits of a float32's mantissa, and the exponent that stands for `2^0`."""


def _fields(builder: ir.IRBuilder, planes: list[list[ir.Value]], part: int) -> list[tuple[ir.Value, int]]:
    """For 8 channels the word that has the code of each, and where the code begins in it."""
    if len(planes) == 1:
        high = planes[0][part]
        late = builder.lshr(high, every(20))
        return [(high, 4 * j) for j in range(5)] + [(late, 4 * j) for j in range(3)]
    even, odd = code_bytes(builder, planes, part)
    words = even, odd, builder.lshr(even, every(16)), builder.lshr(odd, every(16))
    return [(words[2 * (j // 4) + j % 2], 8 * (j // 2 % 2)) for j in range(8)]


def _numbers(builder: ir.IRBuilder, word: ir.Value, place: int, bits: int) -> ir.Value:
    """Codes of `bits` bits less half of their range, as float32, from a word in which they begin at a place."""
    mask, exponent = (2**bits - 1) << place, MANTISSA - place
    number = builder.or_(builder.and_(word, every(mask)), every((exponent + BIAS) << MANTISSA))
    return builder.fsub(builder.bitcast(number, NUMBERS), every_number(float(2**exponent + 2 ** (bits - 1))))


def _lines_of(builder: ir.IRBuilder, memory: ir.Value, stride: ir.Value, count: int) -> list[ir.Value]:
    """Pointers to the first numbers of `count` lines that are `stride` numbers apart."""
    memory = builder.inttoptr(memory, FLOAT.as_pointer())
    return [builder.gep(memory, [builder.mul(stride, LONG(n))]) for n in range(count)]


def multiply_tile(lines: int, width: int):
    """The function that multiplies `lines` lines with a tile read in `width` bits."""
    count = planes_read(width)

    @intrinsic
    def multiply(typing, x, sums, blocks, scales, plane0, plane1, plane2, plane3, answer, stride):
        """`answer[i] = x[i] @ weight.T` for one tile, all at addresses; lines of the answer are `stride` apart."""

        def generate(context, builder, signature, arguments):
            x, sums, blocks, scales, *planes, answer, stride = arguments
            groups = builder.udiv(builder.add(blocks, LONG(GROUP // CHANNELS - 1)), LONG(GROUP // CHANNELS))
            line = _lines_of(builder, x, builder.mul(groups, LONG(GROUP)), lines)
            line_sums = _lines_of(builder, sums, blocks, lines)
            memory = [builder.inttoptr(plane, WORDS.as_pointer()) for plane in planes[:count]]
            scale_memory = builder.inttoptr(scales, HALVES.as_pointer())
            before, loop = builder.block, builder.append_basic_block("loop")
            after = builder.append_basic_block("after")
            builder.branch(loop)
            builder.position_at_end(loop)
            block = builder.phi(LONG)
            block.add_incoming(LONG(0), before)
            totals = [builder.phi(NUMBERS) for _ in range(lines)]
            words = load_block(builder, memory, block)
            read = CODE_BITS if count > 1 else PLANES[0]
            half = FLOAT(2.0 ** (read - width) / 2)
            chains = [[every_number(0.0)] * CHAINS for _ in range(lines)]
            for i in range(lines):
                total = builder.load(builder.gep(line_sums[i], [block]))
                chains[i][0] = spread(builder, builder.fmul(total, half))
            begin = builder.mul(block, LONG(CHANNELS))
            fields = [field for part in range(CHANNELS // 8) for field in _fields(builder, words, part)]
            channels = range(CHANNELS)
            for channel in channels if lines < LINES[0] else sorted(channels, key=lambda n: n % CHAINS):
                weights = _numbers(builder, *fields[channel], read)
                place, chain = builder.add(begin, LONG(channel)), channel % CHAINS
                for i in range(lines):
                    number = spread(builder, builder.load(builder.gep(line[i], [place])))
                    chains[i][chain] = add_product(builder, chains[i][chain], number, weights)
            scale = load_scale(builder, scale_memory, builder.sdiv(block, LONG(GROUP // CHANNELS)))
            scale = builder.fmul(scale, every_number(2.0 ** (CODE_BITS - read)))
            later = []
            for i in range(lines):
                total = functools.reduce(builder.fadd, chains[i])
                later.append(add_product(builder, totals[i], total, scale))
                totals[i].add_incoming(every_number(0.0), before)
                totals[i].add_incoming(later[i], loop)
            following = builder.add(block, LONG(1))
            block.add_incoming(following, loop)
            builder.cbranch(builder.icmp_signed("<", following, blocks), loop, after)
            builder.position_at_end(after)
            for i, target in enumerate(_lines_of(builder, answer, stride, lines)):
                builder.store(later[i], builder.bitcast(target, NUMBERS.as_pointer()), align=4)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 10), generate

    return multiply


def lines_in(width: int):
    """The function that multiplies all lines with a tile read in `width` bits."""
    four, two, one = (multiply_tile(lines, width) for lines in LINES)

    @njit(error_model="numpy")
    def multiply_lines(x, sums, lines, blocks, scales, w0, w1, w2, w3, answer, stride):
        line, each = 0, (blocks * CHANNELS + GROUP - 1) // GROUP * GROUP
        while line < lines:
            own, own_sums = x + 4 * line * each, sums + 4 * line * blocks
            if lines - line >= 4:
                four(own, own_sums, blocks, scales, w0, w1, w2, w3, answer + 4 * line * stride, stride)
                line += 4
            elif lines - line >= 2:
                two(own, own_sums, blocks, scales, w0, w1, w2, w3, answer + 4 * line * stride, stride)
                line += 2
            else:
                one(own, own_sums, blocks, scales, w0, w1, w2, w3, answer + 4 * line * stride, stride)
                line += 1

    return multiply_lines


@njit(error_model="numpy", fastmath=FAST_MATH)
def prepare_lines(x, scratch, lines, blocks):
    """The sums of the inputs of every block."""
    sums, stride = float32_at(scratch), (blocks * CHANNELS + GROUP - 1) // GROUP * GROUP
    for line in range(lines):
        numbers = float32_at(x + 4 * line * stride)
        for block in range(blocks):
            total = np.float32(0.0)
            for channel in range(CHANNELS):
                total += numbers[block * CHANNELS + channel]
            sums[line * blocks + block] = total
