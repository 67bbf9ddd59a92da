# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Product of a few tokens with weights in nested planes on the CPU, compiled by numba.

A vector has one number for each of 16 outputs. Of 8 channels at a time, the bits of all planes are put together in
bytes, in a few instructions for all of them. A byte, or the nibble of the first plane alone, is then used where it is:
an exponent above it makes it the float32 `2^n + code`, from which a constant is subtracted. What is left is exact, and
half a cell below the middle; half a cell times the sum of the inputs is added. Planes that are not read are not
touched.

    tile      16 outputs, all channels     threads take tiles by a counter
    block     32 channels, unrolled        two sums a line, which are added up, times the scale, at the end of a block

A *line* is the input of one token, float32, filled up with zeros to whole blocks. The order of the sums depends
neither on the other lines nor on the number of threads.
"""

import functools

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ...selection.nested_planes import CHANNELS, CODE_BITS, GROUP, OUTPUTS, PLANES, WIDTHS
from .code_cache import cfunc, njit
from .numba_memory import FAST_MATH, ask_for, fetch_add, float32_at
from .numba_vectors import FLOAT, LONG, WORD, add_product


(X, SUMS, SCALES, FIRST_PLANE) = range(4)
(ANSWER, LINES, BLOCKS, TILES, NEXT) = range(FIRST_PLANE + len(PLANES), FIRST_PLANE + len(PLANES) + 5)
HEADER = NEXT + 1
MANY_LINES = 4
"""Lines for which a weight is put together once."""
TASK_TILES = 2
CHAINS = 2
"""Sums of a line within a block, so that a product need not wait for the one before."""
PREFETCHED = 4096
"""Bytes of the first plane between those that are prefetched and those in use."""

WORDS, NUMBERS, HALVES = (ir.VectorType(kind, OUTPUTS) for kind in (WORD, FLOAT, ir.IntType(16)))
ZEROS = ir.Constant(NUMBERS, [0.0] * OUTPUTS)
MANTISSA, BIAS = 23, 127
"""Bits of a float32's mantissa, and the exponent that stands for `2^0`."""


def _all(number: int) -> ir.Constant:
    return ir.Constant(WORDS, [number] * OUTPUTS)


def _spread(builder: ir.IRBuilder, number: ir.Value) -> ir.Value:
    alone = builder.insert_element(ir.Constant(NUMBERS, ir.Undefined), number, WORD(0))
    return builder.shuffle_vector(alone, alone, ir.Constant(ir.VectorType(WORD, OUTPUTS), [0] * OUTPUTS))


def _moved(builder: ir.IRBuilder, word: ir.Value, places: int, mask: int) -> ir.Value:
    """The bits of `mask` in a word that is shifted up by `places`, or down where they are negative."""
    if places:
        shift = builder.shl if places > 0 else builder.lshr
        word = shift(word, _all(abs(places)))
    return builder.and_(word, _all(mask))


def _low_nibbles(builder: ir.IRBuilder, planes: list[list[ir.Value]], part: int) -> ir.Value:
    """The last 4 bits of the codes of 8 channels, those that are not read zero, from all planes but the first."""
    nibbles, left = None, CODE_BITS - PLANES[0]
    for bits, plane in zip(PLANES[1:], planes, strict=False):
        left -= bits
        each = 4 // bits
        mask = 0x11111111 * ((2**bits - 1) << left)
        moved = _moved(builder, plane[part // each], left - bits * (part % each), mask)
        nibbles = moved if nibbles is None else builder.or_(nibbles, moved)
    return nibbles


def _fields(builder: ir.IRBuilder, planes: list[list[ir.Value]], part: int) -> list[tuple[ir.Value, int]]:
    """For 8 channels the word that has the code of each, and where the code begins in it."""
    high = planes[0][part]
    if len(planes) == 1:
        late = builder.lshr(high, _all(20))
        return [(high, 4 * j) for j in range(5)] + [(late, 4 * j) for j in range(3)]
    low = _low_nibbles(builder, planes[1:], part)
    even = builder.or_(_moved(builder, high, 4, 0xF0F0F0F0), _moved(builder, low, 0, 0x0F0F0F0F))
    odd = builder.or_(_moved(builder, high, 0, 0xF0F0F0F0), _moved(builder, low, -4, 0x0F0F0F0F))
    words = even, odd, builder.lshr(even, _all(16)), builder.lshr(odd, _all(16))
    return [(words[2 * (j // 4) + j % 2], 8 * (j // 2 % 2)) for j in range(8)]


def _numbers(builder: ir.IRBuilder, word: ir.Value, place: int, bits: int) -> ir.Value:
    """Codes of `bits` bits less half of their range, as float32, from a word in which they begin at a place."""
    mask, exponent = (2**bits - 1) << place, MANTISSA - place
    number = builder.or_(builder.and_(word, _all(mask)), _all((exponent + BIAS) << MANTISSA))
    middle = float(2**exponent + 2 ** (bits - 1))
    return builder.fsub(builder.bitcast(number, NUMBERS), ir.Constant(NUMBERS, [middle] * OUTPUTS))


def _lines_of(builder: ir.IRBuilder, memory: ir.Value, stride: ir.Value, count: int) -> list[ir.Value]:
    """Pointers to the first numbers of `count` lines that are `stride` numbers apart."""
    memory = builder.inttoptr(memory, FLOAT.as_pointer())
    return [builder.gep(memory, [builder.mul(stride, LONG(n))]) for n in range(count)]


def _load_block(builder: ir.IRBuilder, memory: list[ir.Value], block: ir.Value) -> list[list[ir.Value]]:
    """The words of a block from each plane; later ones are prefetched."""
    words = []
    for bits, plane in zip(PLANES, memory, strict=False):
        first = builder.mul(block, LONG(bits))
        places = [builder.gep(plane, [builder.add(first, LONG(k))]) for k in range(bits)]
        words.append([builder.load(place, align=4) for place in places])
        for place in places:
            ahead = builder.add(builder.ptrtoint(place, LONG), LONG(PREFETCHED * bits // PLANES[0]))
            ask_for(builder, builder.inttoptr(ahead, ir.IntType(8).as_pointer()))
    return words


def _load_scale(builder: ir.IRBuilder, memory: ir.Value, block: ir.Value, times: float) -> ir.Value:
    """The scales of the group that a block belongs to, as float32, multiplied by a number."""
    group = builder.sdiv(block, LONG(GROUP // CHANNELS))
    half = builder.load(builder.gep(memory, [group]), align=2)
    scale = builder.bitcast(builder.shl(builder.zext(half, WORDS), _all(16)), NUMBERS)
    return builder.fmul(scale, ir.Constant(NUMBERS, [times] * OUTPUTS))


def _planes_read(width: int) -> int:
    return next(n for n in range(1, len(PLANES) + 1) if sum(PLANES[:n]) == width)


def _multiply_tile(lines: int, width: int):
    count = _planes_read(width)

    @intrinsic
    def multiply_tile(typing, x, sums, blocks, scales, plane0, plane1, plane2, plane3, answer, stride):
        """`answer[i] = x[i] @ weight.T` for one tile, all at addresses; lines of the answer are `stride` apart."""

        def generate(context, builder, signature, arguments):
            x, sums, blocks, scales, *planes, answer, stride = arguments
            line = _lines_of(builder, x, builder.mul(blocks, LONG(CHANNELS)), lines)
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
            words = _load_block(builder, memory, block)
            read = CODE_BITS if count > 1 else PLANES[0]
            half = FLOAT(2.0 ** (read - width) / 2)
            chains = [[ZEROS] * CHAINS for _ in range(lines)]
            for i in range(lines):
                total = builder.load(builder.gep(line_sums[i], [block]))
                chains[i][0] = _spread(builder, builder.fmul(total, half))
            begin = builder.mul(block, LONG(CHANNELS))
            for part in range(CHANNELS // 8):
                for j, (word, field) in enumerate(_fields(builder, words, part)):
                    weights = _numbers(builder, word, field, read)
                    place, chain = builder.add(begin, LONG(8 * part + j)), j % CHAINS
                    for i in range(lines):
                        number = _spread(builder, builder.load(builder.gep(line[i], [place])))
                        chains[i][chain] = add_product(builder, chains[i][chain], number, weights)
            scale = _load_scale(builder, scale_memory, block, 2.0 ** (CODE_BITS - read))
            later = []
            for i in range(lines):
                total = functools.reduce(builder.fadd, chains[i])
                later.append(add_product(builder, totals[i], total, scale))
                totals[i].add_incoming(ZEROS, before)
                totals[i].add_incoming(later[i], loop)
            following = builder.add(block, LONG(1))
            block.add_incoming(following, loop)
            builder.cbranch(builder.icmp_signed("<", following, blocks), loop, after)
            builder.position_at_end(after)
            for i, target in enumerate(_lines_of(builder, answer, stride, lines)):
                builder.store(later[i], builder.bitcast(target, NUMBERS.as_pointer()), align=4)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 10), generate

    return multiply_tile


@njit(error_model="numpy", fastmath=FAST_MATH)
def add_up_inputs(args):
    """The sums of the inputs of every block. Each thread writes all of them, and all write the same."""
    x, sums = float32_at(args[X]), float32_at(args[SUMS])
    for block in range(args[LINES] * args[BLOCKS]):
        total = np.float32(0.0)
        for channel in range(CHANNELS):
            total += x[block * CHANNELS + channel]
        sums[block] = total


def _kernel(width: int):
    """The compiled function that reads `width` bits."""
    many, one = _multiply_tile(MANY_LINES, width), _multiply_tile(1, width)
    p0, p1, p2, p3 = (4 * bits * OUTPUTS for bits in PLANES)
    b0, b1, b2, b3 = range(FIRST_PLANE, FIRST_PLANE + 4)
    per_group = GROUP // CHANNELS

    @njit(error_model="numpy")
    def multiply_one_tile(args, tile):
        blocks, stride = args[BLOCKS], args[TILES] * OUTPUTS
        skipped = tile * blocks
        scales = args[SCALES] + tile * ((blocks + per_group - 1) // per_group) * 2 * OUTPUTS
        w0, w1 = args[b0] + skipped * p0, args[b1] + skipped * p1
        w2, w3 = args[b2] + skipped * p2, args[b3] + skipped * p3
        x, sums, answer, line = args[X], args[SUMS], args[ANSWER] + 4 * tile * OUTPUTS, 0
        while args[LINES] - line >= MANY_LINES:
            many(x, sums, blocks, scales, w0, w1, w2, w3, answer, stride)
            x, sums = x + 4 * MANY_LINES * blocks * CHANNELS, sums + 4 * MANY_LINES * blocks
            line, answer = line + MANY_LINES, answer + 4 * MANY_LINES * stride
        while line < args[LINES]:
            one(x, sums, blocks, scales, w0, w1, w2, w3, answer, stride)
            x, sums = x + 4 * blocks * CHANNELS, sums + 4 * blocks
            line, answer = line + 1, answer + 4 * stride

    @cfunc(types.void(types.CPointer(types.int64)), error_model="numpy")
    def multiply(args):
        add_up_inputs(args)
        while True:
            first = fetch_add(args, NEXT, 1) * TASK_TILES
            if first >= args[TILES]:
                return
            for tile in range(first, min(first + TASK_TILES, args[TILES])):
                multiply_one_tile(args, tile)

    return multiply


KERNELS = {width: _kernel(width) for width in WIDTHS}
"""The compiled functions by the number of bits that they read."""
