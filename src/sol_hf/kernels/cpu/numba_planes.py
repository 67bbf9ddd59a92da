# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Product of a few tokens with weights in nested planes on the CPU, compiled by numba.

A *tile* is 16 outputs, all channels. Threads take tiles by a counter. A vector has one number for each output; codes
are put together from the planes in registers, for several lines at once, and planes that are not read are not touched.
A *line* is the input of one token, float32, filled up with zeros to whole groups of channels.

There are two ways to multiply a tile: by [integers](numba_plane_integers.py) where the processor has dot products of
bytes, else by [float32](numba_plane_floats.py). Neither depends on the other lines or on the number of threads.
"""

from numba import types

from ...selection.nested_planes import CHANNELS, GROUP, OUTPUTS, PLANES, WIDTHS
from . import numba_plane_floats as floats
from . import numba_plane_integers as integers
from .code_cache import cfunc, njit
from .numba_memory import fetch_add


(X, SCRATCH, SCALES, FIRST_PLANE) = range(4)
(ANSWER, LINES, BLOCKS, TILES, NEXT) = range(FIRST_PLANE + len(PLANES), FIRST_PLANE + len(PLANES) + 5)
HEADER = NEXT + 1
TASK_TILES = 2
SCRATCH_EACH = integers.RECORD
"""Words of 4 bytes of a line and a group that `SCRATCH` needs."""
_P0, _P1, _P2, _P3 = (4 * bits * OUTPUTS for bits in PLANES)
_B0, _B1, _B2, _B3 = range(FIRST_PLANE, FIRST_PLANE + 4)
_PER_GROUP = GROUP // CHANNELS
_SIGNATURE = types.void(types.CPointer(types.int64))


def _by_integers(width: int):
    """The function that multiplies all lines with a tile by dot products of bytes."""
    eight, four, two, one = (integers.multiply_tile(lines, width) for lines in integers.LINES)
    lines_together = integers.lines_together

    @njit(error_model="numpy")
    def multiply_lines(args, scales, w0, w1, w2, w3, answer):
        blocks, stride = args[BLOCKS], args[TILES] * OUTPUTS
        groups, line = (blocks + _PER_GROUP - 1) // _PER_GROUP, 0
        while line < args[LINES]:
            records, target = args[SCRATCH] + 4 * SCRATCH_EACH * groups * line, answer + 4 * line * stride
            together = lines_together(args[LINES] - line)
            if together == 8:
                eight(records, blocks, scales, w0, w1, w2, w3, target, stride)
            elif together == 4:
                four(records, blocks, scales, w0, w1, w2, w3, target, stride)
            elif together == 2:
                two(records, blocks, scales, w0, w1, w2, w3, target, stride)
            else:
                one(records, blocks, scales, w0, w1, w2, w3, target, stride)
            line += together

    return multiply_lines


def _by_floats(width: int):
    """The function that multiplies all lines with a tile in float32."""
    lines_in_width = floats.lines_in(width)

    @njit(error_model="numpy")
    def multiply_lines(args, scales, w0, w1, w2, w3, answer):
        blocks, stride = args[BLOCKS], args[TILES] * OUTPUTS
        lines_in_width(args[X], args[SCRATCH], args[LINES], blocks, scales, w0, w1, w2, w3, answer, stride)

    return multiply_lines


def _of_width(width: int, has_dot_products: bool):
    """The function that reads `width` bits; it becomes part of the compiled function that calls it."""
    multiply_lines = _by_integers(width) if has_dot_products else _by_floats(width)
    prepare_lines = integers.prepare_lines if has_dot_products else floats.prepare_lines

    @njit(error_model="numpy")
    def multiply(args):
        first, blocks = fetch_add(args, NEXT, 1) * TASK_TILES, args[BLOCKS]
        if first < args[TILES]:  # each thread writes all of it, and all write the same
            prepare_lines(args[X], args[SCRATCH], args[LINES], blocks)
        while first < args[TILES]:
            for tile in range(first, min(first + TASK_TILES, args[TILES])):
                skipped, groups = tile * blocks, (blocks + _PER_GROUP - 1) // _PER_GROUP
                multiply_lines(
                    args,
                    args[SCALES] + tile * groups * 2 * OUTPUTS,
                    args[_B0] + skipped * _P0,
                    args[_B1] + skipped * _P1,
                    args[_B2] + skipped * _P2,
                    args[_B3] + skipped * _P3,
                    args[ANSWER] + 4 * tile * OUTPUTS,
                )
            first = fetch_add(args, NEXT, 1) * TASK_TILES

    return multiply


def kernel_of(width: int, has_dot_products: bool):
    """The compiled function that reads `width` bits, compiled for this process only."""
    multiply = _of_width(width, has_dot_products)
    return cfunc(_SIGNATURE, cache=False, error_model="numpy")(lambda args: multiply(args))


_multiply4, _multiply5, _multiply6, _multiply8 = (_of_width(width, integers.HAS_DOT_PRODUCTS) for width in WIDTHS)


@cfunc(_SIGNATURE, error_model="numpy")
def multiply_4_bits(args):
    _multiply4(args)


@cfunc(_SIGNATURE, error_model="numpy")
def multiply_5_bits(args):
    _multiply5(args)


@cfunc(_SIGNATURE, error_model="numpy")
def multiply_6_bits(args):
    _multiply6(args)


@cfunc(_SIGNATURE, error_model="numpy")
def multiply_8_bits(args):
    _multiply8(args)


KERNELS = dict(zip(WIDTHS, (multiply_4_bits, multiply_5_bits, multiply_6_bits, multiply_8_bits), strict=True))
"""The compiled functions by the number of bits that they read."""
