# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Tiles of matrix products with columns in the registers: several numbers of one line in a vector, one per column."""

from collections.abc import Callable

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .code_cache import njit
from .numba_linear import TILE_LINES
from .numba_vectors import FLOAT, LANES, LONG, VECTOR, add_product, spread


Add = Callable[[ir.IRBuilder, ir.Value, ir.Value, ir.Value], ir.Value]
COLUMNS, TWO_COLUMNS, FEW_COLUMNS = 3 * LANES, 2 * LANES, LANES
"""Columns that tiles may have."""


def multiply_tile(lines: int, adds: bool, columns: int, add: Add = add_product):
    """A function for numba code that multiplies several lines with vectors of columns.

    Args:
        lines (`int`): Lines.
        adds (`bool`): Whether it adds to the answer.
        columns (`int`): Columns, a multiple of the numbers of a vector.
        add (`Callable`, *optional*): Adds products to a sum; with `add_pairs` numbers of `left` and `right` are words.
    """
    vectors_each = columns // LANES

    @intrinsic
    def multiply(typing, left, line_stride, place_stride, right, count, answer):
        """`answer[i] = sum(left[i, n] * right[n] for n in range(count))`; with `adds` it is added to `answer[i]`.

        `right` and `answer` have `columns` numbers per line. `left` may have any strides, which count numbers.
        """

        def generate(context, builder, signature, arguments):
            left, line_stride, place_stride, right, count, answer = arguments
            left, right, answer = (builder.inttoptr(a, FLOAT.as_pointer()) for a in (left, right, answer))
            line = [builder.gep(left, [builder.mul(line_stride, LONG(i))]) for i in range(lines)]
            targets = [_vector_at(builder, answer, LONG(n * LANES)) for n in range(lines * vectors_each)]
            begin = [builder.load(t, align=4) if adds else VECTOR([0.0] * LANES) for t in targets]
            before, loop = builder.block, builder.append_basic_block("loop")
            after = builder.append_basic_block("after")
            builder.branch(loop)
            builder.position_at_end(loop)
            place = builder.phi(LONG)
            place.add_incoming(LONG(0), before)
            sums = [builder.phi(VECTOR) for _ in targets]
            source = builder.mul(place, LONG(columns))
            vectors = [
                builder.load(_vector_at(builder, right, builder.add(source, LONG(n * LANES))), align=4)
                for n in range(vectors_each)
            ]
            offset = builder.mul(place, place_stride)
            totals: list[ir.Value] = []
            for i in range(lines):
                factor = spread(builder, builder.load(builder.gep(line[i], [offset]), align=2))
                for vector in vectors:
                    totals.append(add(builder, sums[len(totals)], factor, vector))
            for total, first, later in zip(sums, begin, totals, strict=True):
                total.add_incoming(first, before)
                total.add_incoming(later, loop)
            following = builder.add(place, LONG(1))
            place.add_incoming(following, loop)
            builder.cbranch(builder.icmp_signed("<", following, count), loop, after)
            builder.position_at_end(after)
            for target, total in zip(targets, totals, strict=True):
                builder.store(total, target, align=4)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6), generate

    return multiply


def multiply_columns(lines: int, adds: bool, add: Add = add_product):
    """As [`multiply_tile`], for a number of columns that the function takes first: one of the three above."""
    wide, two, few = (multiply_tile(lines, adds, columns, add) for columns in (COLUMNS, TWO_COLUMNS, FEW_COLUMNS))

    @njit(error_model="numpy")
    def multiply(columns, left, line_stride, place_stride, right, count, answer):
        if columns == FEW_COLUMNS:
            few(left, line_stride, place_stride, right, count, answer)
        elif columns == TWO_COLUMNS:
            two(left, line_stride, place_stride, right, count, answer)
        else:
            wide(left, line_stride, place_stride, right, count, answer)

    return multiply


def add_weighted(add: Add = add_product):
    """A function for numba code that adds `count` values, weighted for every column, to `output`.

    Args:
        add (`Callable`, *optional*): See [`multiply_tile`].
    """
    many, one = multiply_columns(TILE_LINES, True, add), multiply_columns(1, True, add)

    @njit(error_model="numpy")
    def add_values(width, values, stride, count, weights, value_dim, output):
        channel = 0
        while channel + TILE_LINES <= value_dim:
            many(width, values + 4 * channel, 1, stride, weights, count, output + 4 * channel * width)
            channel += TILE_LINES
        while channel < value_dim:
            one(width, values + 4 * channel, 1, stride, weights, count, output + 4 * channel * width)
            channel += 1

    return add_values


def _vector_at(builder: ir.IRBuilder, memory: ir.Value, place: ir.Value) -> ir.Value:
    return builder.bitcast(builder.gep(memory, [place]), VECTOR.as_pointer())
