# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Many lines, each of which reads a number of bits of its own, times weights in nested planes, compiled by numba.

The lines are in the order of their bits. A task is a few tiles. Its codes are put together once, in as many bits as
the line that reads the most, for a piece of the channels at a time, and stay in the processor's nearest cache. Every
line then takes the first bits of each, as many as it reads:

    planes -> codes of a tile and a piece -> lines of 4 bits, lines of 5, of 6, of 8

Without dot products of bytes the lines of every number of bits put codes together by themselves, tile by tile.

There are two operations, the second of which may begin when all of the first is done. Neither depends on the number
of threads, and what a line gives depends on no other line.
"""

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ...selection.nested_planes import CHANNELS, CODE_BITS, GROUP, OUTPUTS, PLANES, WIDTHS
from . import numba_plane_floats as floats
from . import numba_plane_integers as integers
from .code_cache import cfunc, njit
from .numba_memory import fetch_add, float32_at
from .numba_plane_words import WORDS, code_bytes, load_block, planes_read
from .numba_vectors import LONG


(X, SCRATCH, SCALES, FIRST_PLANE) = range(4)
(ANSWER, BLOCKS, TILES, FIRST_COUNT) = range(FIRST_PLANE + len(PLANES), FIRST_PLANE + len(PLANES) + 4)
(PREPARED, NEXT, HEADER) = range(FIRST_COUNT + len(WIDTHS), FIRST_COUNT + len(WIDTHS) + 3)
"""Addresses of lines, scratch memory, scales, planes and answers; blocks of channels and tiles; how many lines read
each number of bits; counters of both operations."""
SCRATCH_EACH = integers.RECORD
"""Words of 4 bytes of a line and a group that `SCRATCH` needs."""
TASK_TILES = 2
PIECE = 32
"""Blocks of channels whose codes are put together at a time: 16 KiB for a tile."""
_CODES = CHANNELS * OUTPUTS
"""Bytes of the codes of a block."""
_P0, _P1, _P2, _P3 = (4 * bits * OUTPUTS for bits in PLANES)
_B0, _B1, _B2, _B3 = range(FIRST_PLANE, FIRST_PLANE + 4)
_PER_GROUP = GROUP // CHANNELS
_SIGNATURE = types.void(types.CPointer(types.int64))
_MASKS = tuple(0x01010101 * (2**CODE_BITS - 2 ** (CODE_BITS - width)) for width in WIDTHS)
_HALVES = tuple((126 + CODE_BITS - width) << 23 for width in WIDTHS)
"""Half a cell of every number of bits, `2^(8 - bits) / 2`, as the bits of a float32."""


@intrinsic
def _memory_for_codes(typing):
    """Address of memory for the codes of a task and a piece, which ends with the function that asks for it."""

    def generate(context, builder, signature, arguments):
        with builder.goto_entry_block():  # `alloca_once` would fill it with zeros
            memory = builder.alloca(WORDS, TASK_TILES * PIECE * _CODES // 64)
        memory.align = 64
        return builder.ptrtoint(memory, LONG)

    return types.int64(), generate


def _decode_tile(width: int):
    """The function that puts the codes of a tile together, read in `width` bits."""
    count = planes_read(width)

    @intrinsic
    def decode(typing, codes, first, number, plane0, plane1, plane2, plane3):
        """Write the codes of `number` blocks from `first` on."""

        def generate(context, builder, signature, arguments):
            target, first, number, *planes = arguments
            memory = [builder.inttoptr(plane, WORDS.as_pointer()) for plane in planes[:count]]
            target = builder.inttoptr(target, WORDS.as_pointer())
            with cgutils.for_range(builder, number) as loop:
                words = load_block(builder, memory, builder.add(first, loop.index))
                for part in range(CHANNELS // 8):
                    for n, codes in enumerate(code_bytes(builder, words, part)):
                        place = builder.add(builder.mul(loop.index, LONG(CHANNELS // 4)), LONG(2 * part + n))
                        builder.store(codes, builder.gep(target, [place]), align=4)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), generate

    return decode


_decode4, _decode5, _decode6, _decode8 = map(_decode_tile, WIDTHS)
_eight, _four, _two, _one = (integers.multiply_tile(lines, None) for lines in integers.LINES)
_lines_together, _prepare_together = integers.lines_together, integers.prepare_together


@njit(error_model="numpy")
def _prepare_records(args):
    """Write the records of all lines, of those that are multiplied together at once."""
    groups, task = (args[BLOCKS] + _PER_GROUP - 1) // _PER_GROUP, fetch_add(args, PREPARED, 1)
    line, number = 0, 0
    for width in range(4):
        left = args[FIRST_COUNT + width]
        while left > 0:
            together = _lines_together(left)
            if number == task:
                _prepare_together(args[X], args[SCRATCH], line, together, groups)
                task = fetch_add(args, PREPARED, 1)
            number, line, left = number + 1, line + together, left - together


@njit(error_model="numpy")
def _decode(args, codes, widest, tile, first, number):
    """Put the codes of some blocks of a tile together."""
    skipped = tile * args[BLOCKS]
    w0, w1 = args[_B0] + skipped * _P0, args[_B1] + skipped * _P1
    w2, w3 = args[_B2] + skipped * _P2, args[_B3] + skipped * _P3
    if widest == 0:
        _decode4(codes, first, number, w0, w1, w2, w3)
    elif widest == 1:
        _decode5(codes, first, number, w0, w1, w2, w3)
    elif widest == 2:
        _decode6(codes, first, number, w0, w1, w2, w3)
    else:
        _decode8(codes, first, number, w0, w1, w2, w3)


@njit(error_model="numpy")
def _add_lines(args, together, records, number, scales, codes, width, answer):
    """Add the products of some lines with the codes of a tile and a piece to their answer."""
    mask, half, stride = _MASKS[width], _HALVES[width], args[TILES] * OUTPUTS
    if together == 8:
        _eight(records, number, scales, codes, mask, half, 0, answer, stride)
    elif together == 4:
        _four(records, number, scales, codes, mask, half, 0, answer, stride)
    elif together == 2:
        _two(records, number, scales, codes, mask, half, 0, answer, stride)
    else:
        _one(records, number, scales, codes, mask, half, 0, answer, stride)


@njit(error_model="numpy")
def _add_piece(args, codes, begin, end, first, number):
    """Add the products of all lines with a piece of the tiles from `begin` to `end`, whose codes are put together."""
    groups, line = (args[BLOCKS] + _PER_GROUP - 1) // _PER_GROUP, 0
    group = first // _PER_GROUP
    for width in range(4):
        left = args[FIRST_COUNT + width]
        while left > 0:
            together = _lines_together(left)
            records = args[SCRATCH] + 4 * SCRATCH_EACH * (groups * line + group * together)
            for tile in range(begin, end):
                scales = args[SCALES] + (tile * groups + group) * 2 * OUTPUTS
                answer = args[ANSWER] + 4 * (line * args[TILES] + tile) * OUTPUTS
                own = codes + (tile - begin) * PIECE * _CODES
                _add_lines(args, together, records, number, scales, own, width, answer)
            line, left = line + together, left - together


@njit(error_model="numpy")
def _multiply_codes(args):
    """Take tasks until none is left."""
    lines, widest, codes = 0, 0, _memory_for_codes()
    for width in range(4):
        lines += args[FIRST_COUNT + width]
        if args[FIRST_COUNT + width] > 0:
            widest = width
    begin = fetch_add(args, NEXT, 1) * TASK_TILES
    while begin < args[TILES] and lines > 0:
        end = min(begin + TASK_TILES, args[TILES])
        for line in range(lines):
            answer = float32_at(args[ANSWER] + 4 * (line * args[TILES] + begin) * OUTPUTS)
            for n in range((end - begin) * OUTPUTS):
                answer[n] = 0
        for first in range(0, args[BLOCKS], PIECE):
            number = min(PIECE, args[BLOCKS] - first)
            for tile in range(begin, end):
                _decode(args, codes + (tile - begin) * PIECE * _CODES, widest, tile, first, number)
            _add_piece(args, codes, begin, end, first, number)
        begin = fetch_add(args, NEXT, 1) * TASK_TILES


_floats4, _floats5, _floats6, _floats8 = map(floats.lines_in, WIDTHS)
_sum_of_line = floats.prepare_lines


@njit(error_model="numpy")
def _prepare_sums(args):
    """Write the sums of the inputs of all blocks and lines."""
    lines = args[FIRST_COUNT] + args[FIRST_COUNT + 1] + args[FIRST_COUNT + 2] + args[FIRST_COUNT + 3]
    groups, line = (args[BLOCKS] + _PER_GROUP - 1) // _PER_GROUP, fetch_add(args, PREPARED, 1)
    while line < lines:
        _sum_of_line(args[X] + 4 * line * groups * GROUP, args[SCRATCH] + 4 * line * args[BLOCKS], 1, args[BLOCKS])
        line = fetch_add(args, PREPARED, 1)


@njit(error_model="numpy")
def _multiply_floats(args):
    """Take tiles until none is left."""
    blocks, stride, tile = args[BLOCKS], args[TILES] * OUTPUTS, fetch_add(args, NEXT, 1)
    groups = (blocks + _PER_GROUP - 1) // _PER_GROUP
    while tile < args[TILES]:
        skipped, x, sums, answer = tile * blocks, args[X], args[SCRATCH], args[ANSWER] + 4 * tile * OUTPUTS
        w0, w1 = args[_B0] + skipped * _P0, args[_B1] + skipped * _P1
        w2, w3 = args[_B2] + skipped * _P2, args[_B3] + skipped * _P3
        scales = args[SCALES] + tile * groups * 2 * OUTPUTS
        for width in range(4):
            lines = args[FIRST_COUNT + width]
            if width == 0:
                _floats4(x, sums, lines, blocks, scales, w0, w1, w2, w3, answer, stride)
            elif width == 1:
                _floats5(x, sums, lines, blocks, scales, w0, w1, w2, w3, answer, stride)
            elif width == 2:
                _floats6(x, sums, lines, blocks, scales, w0, w1, w2, w3, answer, stride)
            else:
                _floats8(x, sums, lines, blocks, scales, w0, w1, w2, w3, answer, stride)
            x, sums, answer = x + 4 * lines * groups * GROUP, sums + 4 * lines * blocks, answer + 4 * lines * stride
        tile = fetch_add(args, NEXT, 1)


def kernels_of(has_dot_products: bool):
    """Both operations, compiled for this process only."""
    pair = (_prepare_records, _multiply_codes) if has_dot_products else (_prepare_sums, _multiply_floats)
    first, second = pair
    compiled = cfunc(_SIGNATURE, cache=False, error_model="numpy")
    return compiled(lambda args: first(args)), compiled(lambda args: second(args))


_prepare, _multiply = (
    (_prepare_records, _multiply_codes) if integers.HAS_DOT_PRODUCTS else (_prepare_sums, _multiply_floats)
)


@cfunc(_SIGNATURE, error_model="numpy")
def prepare_rows(args):
    _prepare(args)


@cfunc(_SIGNATURE, error_model="numpy")
def multiply_rows(args):
    _multiply(args)
