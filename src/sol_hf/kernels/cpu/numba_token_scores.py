# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Products of the queries of a group with keys in 4 bits, 16 tokens at a time, by dot products of bytes.

A query is rounded to whole numbers of 24 bits with one step, as in `numba_plane_integers`: three signed bytes a
channel. The codes of 16 tokens are turned over first, so that a vector has a word of each token: a word has the low
halves of four bytes, or the high ones, so the codes of four channels.

    record of a query    digits a (dim bytes) | b | c | -7 sum(256 a + b) | -7 sum(c) | step
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .code_cache import njit
from .numba_memory import float32_at, int8_at, int32_at
from .numba_plane_integers import DOT_PRODUCT, HAS_DOT_PRODUCTS, LARGEST, LEAST_STEP
from .numba_plane_words import NUMBERS, WORDS, every, every_number, spread
from .numba_vectors import FLOAT, LONG, WORD, add_product


TOKENS = 16
"""Tokens whose products are computed together."""
CHUNK = 16
"""Bytes of a key's codes that are turned over together."""
MOST_OF_GROUP = 64
"""Queries of a group whose records find room."""
MOST_QUERIES = 4
"""Queries for which codes are turned over once."""
DIGITS, MIDDLE, TAIL = 3, 7, 3
"""Digits of a number, what is added to a code, and the words of a record after the digits."""
_BASE, _HALF = 256, 128
_LARGEST, _LEAST = np.float32(LARGEST), np.float32(LEAST_STEP)


@njit(error_model="numpy")
def can_score(group, dim, count):
    """Whether [`score_tokens`] can compute the products with `count` keys of `dim` channels."""
    return HAS_DOT_PRODUCTS and dim % (2 * CHUNK) == 0 and count >= TOKENS and group <= MOST_OF_GROUP


@njit(error_model="numpy")
def write_records(queries, group, dim, record):
    """Write the records of some queries, float32 at an address, one after another."""
    for g in range(group):
        numbers, target = float32_at(queries + 4 * g * dim), record + 4 * g * (DIGITS * dim // 4 + TAIL)
        digits, words = int8_at(target), int32_at(target + DIGITS * dim)
        largest = np.float32(0.0)
        for i in range(dim):
            largest = max(largest, abs(numbers[i]))
        step = max(largest / _LARGEST, _LEAST)
        high, low = np.int32(0), np.int32(0)
        for i in range(dim):
            whole = np.int32(np.rint(numbers[i] / step))
            c = ((whole + _HALF) & (_BASE - 1)) - _HALF
            rest = (whole - c) >> 8
            b = ((rest + _HALF) & (_BASE - 1)) - _HALF
            digits[i], digits[dim + i], digits[2 * dim + i] = (rest - b) >> 8, b, c
            high, low = np.int32(high + rest), np.int32(low + c)
        words[0], words[1] = -MIDDLE * high, -MIDDLE * low
        float32_at(target + DIGITS * dim)[2] = step


def _turned_over(builder: ir.IRBuilder, codes: ir.Value, half: ir.Value) -> list[ir.Value]:
    """Four vectors, of the first word of `CHUNK` bytes of each of 16 tokens, of the second, ..."""
    quarter, rows = ir.VectorType(WORD, 4), []
    for token in range(TOKENS):
        place = builder.gep(codes, [builder.mul(half, LONG(token))])
        rows.append(builder.load(builder.bitcast(place, quarter.as_pointer()), align=1))

    def joined(a, b, size):
        return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(WORD, size), list(range(size))))

    fours = []
    for n in range(4):  # tokens n, 4 + n, 8 + n, 12 + n
        low, high = joined(rows[n], rows[4 + n], 8), joined(rows[8 + n], rows[12 + n], 8)
        fours.append(joined(low, high, TOKENS))
    even, odd = ([_mixed(builder, fours[n], fours[n + 2], upper) for upper in (0, 1)] for n in (0, 1))
    return [_mixed(builder, even[upper], odd[upper], part) for upper in (0, 1) for part in (0, 1)]


def _mixed(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, upper: int) -> ir.Value:
    """Words of two vectors in turn, of the lower or the upper half of every 16 bytes."""
    order = [4 * lane + 2 * upper + n + other * TOKENS for lane in range(4) for n in (0, 1) for other in (0, 1)]
    return builder.shuffle_vector(a, b, ir.Constant(WORDS, order))


def _dot(builder: ir.IRBuilder, total: ir.Value, codes: ir.Value, digits: ir.Value) -> ir.Value:
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(WORDS, [WORDS] * 3), DOT_PRODUCT)
    return builder.call(function, [total, codes, digits])


class _Queries:
    """The records of some queries, while LLVM code that reads them is written.

    Args:
        builder (`ir.IRBuilder`): Where the code goes.
        record (`ir.Value`): Address of the first.
        dim (`ir.Value`): Channels of a query.
        count (`int`): Number of queries.
    """

    def __init__(self, builder: ir.IRBuilder, record: ir.Value, dim: ir.Value, count: int):
        self.builder, self.words = builder, builder.udiv(dim, LONG(4))
        self.length = builder.mul(self.words, LONG(DIGITS))
        each = builder.add(self.length, LONG(TAIL))
        memory = builder.inttoptr(record, WORD.as_pointer())
        self.records = [builder.gep(memory, [builder.mul(each, LONG(g))]) for g in range(count)]

    def tail(self, query: int, place: int, kind: ir.Type = WORD) -> ir.Value:
        """A word or a float32 after the digits of a query, for all tokens."""
        memory = self.builder.gep(self.records[query], [self.builder.add(self.length, LONG(place))])
        return spread(self.builder, self.builder.load(self.builder.bitcast(memory, kind.as_pointer())))

    def starts(self) -> list[ir.Value]:
        """The sums before the first product: three for every query."""
        return [start for g in range(len(self.records)) for start in (every(0), self.tail(g, 0), self.tail(g, 1))]

    def add(self, sums: list[ir.Value], codes: ir.Value, quad: ir.Value) -> None:
        """Add the products of words of codes with the digits of four channels of all queries."""
        for g, record in enumerate(self.records):
            for digit in range(DIGITS):
                place = self.builder.add(quad, self.builder.mul(self.words, LONG(digit)))
                digits = spread(self.builder, self.builder.load(self.builder.gep(record, [place])))
                sums[DIGITS * g + digit] = _dot(self.builder, sums[DIGITS * g + digit], codes, digits)

    def number(self, query: int, sums: list[ir.Value]) -> ir.Value:
        """The products that sums of a query stand for."""
        builder, (a, b, c) = self.builder, sums[DIGITS * query : DIGITS * query + DIGITS]
        high = builder.sitofp(builder.add(builder.shl(a, every(8)), b), NUMBERS)
        number = add_product(builder, builder.sitofp(c, NUMBERS), high, every_number(256.0))
        return builder.fmul(number, self.tail(query, 2, FLOAT))


def _score_block(queries: int):
    """The function that multiplies some queries with the codes of 16 tokens."""

    @intrinsic
    def score(typing, codes, dim, record, answer, stride):
        """Write products, all at addresses; answers of queries are `stride` apart."""

        def generate(context, builder, signature, arguments):
            codes, dim, record, answer, stride = arguments
            if not HAS_DOT_PRODUCTS:
                return context.get_dummy_value()
            half, asked = builder.udiv(dim, LONG(2)), _Queries(builder, record, dim, queries)
            source, starts = builder.inttoptr(codes, ir.IntType(8).as_pointer()), asked.starts()
            before, loop = builder.block, builder.append_basic_block("chunks")
            after = builder.append_basic_block("after")
            builder.branch(loop)
            builder.position_at_end(loop)
            begin = builder.phi(LONG)
            begin.add_incoming(LONG(0), before)
            entered = [builder.phi(WORDS) for _ in starts]
            sums, quad = list(entered), builder.udiv(begin, LONG(4))
            later_quad = builder.add(quad, builder.udiv(half, LONG(4)))
            for n, word in enumerate(_turned_over(builder, builder.gep(source, [begin]), half)):
                asked.add(sums, builder.and_(word, every(0x0F0F0F0F)), builder.add(quad, LONG(n)))
                high = builder.and_(builder.lshr(word, every(4)), every(0x0F0F0F0F))
                asked.add(sums, high, builder.add(later_quad, LONG(n)))
            following = builder.add(begin, LONG(CHUNK))
            begin.add_incoming(following, loop)
            for phi, start, later in zip(entered, starts, sums, strict=True):
                phi.add_incoming(start, before)
                phi.add_incoming(later, loop)
            builder.cbranch(builder.icmp_signed("<", following, half), loop, after)
            builder.position_at_end(after)
            target = builder.inttoptr(answer, FLOAT.as_pointer())
            for g in range(queries):
                place = builder.bitcast(builder.gep(target, [builder.mul(stride, LONG(g))]), NUMBERS.as_pointer())
                builder.store(asked.number(g, sums), place, align=4)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 5), generate

    return score


_one, _two, _three, _four = (_score_block(queries) for queries in range(1, MOST_QUERIES + 1))


@njit(error_model="numpy")
def score_tokens(codes, dim, count, record, group, answer, stride):
    """Products of all queries with the codes of `count` keys, all at addresses.

    The last 16 tokens may be among those before; their products are the same again.
    """
    each = 4 * (DIGITS * dim // 4 + TAIL)
    for begin in range(0, count, TOKENS):
        first, g = min(begin, count - TOKENS), 0
        block = codes + first * dim // 2
        while g < group:
            target, one = answer + 4 * (g * stride + first), record + g * each
            if group - g >= MOST_QUERIES:
                _four(block, dim, one, target, stride)
            elif group - g == 3:
                _three(block, dim, one, target, stride)
            elif group - g == 2:
                _two(block, dim, one, target, stride)
            else:
                _one(block, dim, one, target, stride)
            g += MOST_QUERIES
