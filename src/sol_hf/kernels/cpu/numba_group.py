# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The two products of attention for the query heads of a group, which read the same keys and values.

Keys and values are read where they lie, once for up to four heads, and what is added up stays in registers:

    scores    | a key for every lane: products of four keys at a time, whose lanes are then added up across each other
    answer    | 64 channels of all heads: weights times values, token by token

Tokens lie one after another, or are those of a list. Sums are in float32, also for bfloat16.
"""

from collections.abc import Sequence

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .code_cache import njit
from .numba_vectors import FLOAT, LANES, LONG, VECTOR, WORD, add_product, load_vector, spread


TOKENS = LANES
"""Tokens whose scores are computed together."""
WIDE = 4
"""Vectors of channels whose sums stay in registers."""
_QUAD = 4


@njit(error_model="numpy")
def fits_vectors(dim, value_dim):
    """Whether heads of this many channels fill vectors."""
    return dim % LANES == 0 and value_dim % LANES == 0


def _line(builder: ir.IRBuilder, memory: ir.Value, base: ir.Value, slot: ir.Value, dim: ir.Value) -> ir.Value:
    return builder.gep(memory, [builder.add(base, builder.mul(slot, dim))])


def _slot(builder: ir.IRBuilder, tokens: ir.Value, number: ir.Value, is_listed: bool) -> ir.Value:
    """The slot of a token: `tokens` is the address of a list of int32, or the first slot."""
    if not is_listed:
        return builder.add(tokens, number)
    return builder.zext(builder.load(builder.gep(builder.inttoptr(tokens, WORD.as_pointer()), [number])), LONG)


def _joined(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, bit: int) -> ir.Value:
    """Each lane of `a` without `bit` in its number, and of `b` with it, and the lane whose number differs in `bit`."""
    own = [lane + (LANES if lane & bit else 0) for lane in range(LANES)]
    kind = ir.VectorType(WORD, LANES)
    first, second = (
        builder.shuffle_vector(a, b, ir.Constant(kind, order)) for order in (own, [lane ^ bit for lane in own])
    )
    return builder.fadd(first, second)


def _all_joined(builder: ir.IRBuilder, vectors: Sequence[ir.Value], bit: int) -> ir.Value:
    """A vector with the sum of all lanes of the vectors, for those bits of a lane's number from `bit` on."""
    while len(vectors) > 1:
        vectors = [_joined(builder, a, b, bit) for a, b in zip(vectors[::2], vectors[1::2], strict=True)]
        bit *= 2
    return vectors[0]


def _quad_sums(
    builder: ir.IRBuilder, lines: Sequence[ir.Value], queries: Sequence[ir.Value], dim: ir.Value
) -> list[ir.Value]:
    """For every query a vector whose lanes, four apart, add up to the products with four keys."""
    before, loop = builder.block, builder.append_basic_block("channels")
    after = builder.append_basic_block("after")
    builder.branch(loop)
    builder.position_at_end(loop)
    place = builder.phi(LONG)
    place.add_incoming(LONG(0), before)
    sums = [[builder.phi(VECTOR) for _ in lines] for _ in queries]
    keys = [load_vector(builder, line, place) for line in lines]
    totals = []
    for own, query in zip(sums, queries, strict=True):
        numbers = load_vector(builder, query, place)
        totals.append([add_product(builder, total, numbers, key) for total, key in zip(own, keys, strict=True)])
    following = builder.add(place, LONG(LANES))
    place.add_incoming(following, loop)
    for own, later in zip(sums, totals, strict=True):
        for total, new in zip(own, later, strict=True):
            total.add_incoming(VECTOR([0.0] * LANES), before)
            total.add_incoming(new, loop)
    builder.cbranch(builder.icmp_signed("<", following, dim), loop, after)
    builder.position_at_end(after)
    return [_all_joined(builder, own, 1) for own in totals]


def _score_tokens(count: int, is_listed: bool):
    """The function that multiplies `count` queries with the keys of `TOKENS` tokens."""

    @intrinsic
    def score(typing, query, dim, memory, base, tokens, answer, stride):
        """`answer[g * stride + n] = query[g] @ key[n]`; the first slot begins at number `base` of the memory."""

        def generate(context, builder, signature, arguments):
            query, dim, memory, base, tokens, answer, stride = arguments
            numbers = builder.inttoptr(query, FLOAT.as_pointer())
            queries = [builder.gep(numbers, [builder.mul(dim, LONG(g))]) for g in range(count)]
            quads = []
            for first in range(0, TOKENS, _QUAD):
                slots = [_slot(builder, tokens, LONG(first + n), is_listed) for n in range(_QUAD)]
                quads.append(_quad_sums(builder, [_line(builder, memory, base, s, dim) for s in slots], queries, dim))
            target = builder.inttoptr(answer, FLOAT.as_pointer())
            for g, parts in enumerate(zip(*quads, strict=True)):
                place = builder.gep(target, [builder.mul(stride, LONG(g))])
                total = _all_joined(builder, parts, _QUAD)
                builder.store(total, builder.bitcast(place, VECTOR.as_pointer()), align=4)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, memory, *[types.int64] * 4), generate

    return score


def _add_values(count: int, vectors: int, is_listed: bool):
    """The function that adds weighted values to the sums of `count` queries, over some vectors of channels."""

    @intrinsic
    def add(typing, weights, stride, memory, base, tokens, number, dim, total):
        """`total[g * (2 + dim)] += weights[g * stride + n] * value[n]`; all but the memory are addresses or numbers.

        `base` is the number of the memory at which these channels of the first slot begin.
        """

        def generate(context, builder, signature, arguments):
            weights, stride, memory, base, tokens, number, dim, total = arguments
            shares = builder.inttoptr(weights, FLOAT.as_pointer())
            shares = [builder.gep(shares, [builder.mul(stride, LONG(g))]) for g in range(count)]
            width = builder.add(dim, LONG(2))
            target = builder.inttoptr(total, FLOAT.as_pointer())
            targets = [builder.gep(target, [builder.mul(width, LONG(g))]) for g in range(count)]
            before, loop = builder.block, builder.append_basic_block("tokens")
            after = builder.append_basic_block("after")
            begin = [load_vector(builder, x, LONG(LANES * n)) for x in targets for n in range(vectors)]
            builder.branch(loop)
            builder.position_at_end(loop)
            place = builder.phi(LONG)
            place.add_incoming(LONG(0), before)
            sums = [builder.phi(VECTOR) for _ in begin]
            line = _line(builder, memory, base, _slot(builder, tokens, place, is_listed), dim)
            values = [load_vector(builder, line, LONG(LANES * n)) for n in range(vectors)]
            later: list[ir.Value] = []
            for share in shares:
                weight = spread(builder, builder.load(builder.gep(share, [place])))
                later += [add_product(builder, sums[len(later) + n], weight, x) for n, x in enumerate(values)]
            following = builder.add(place, LONG(1))
            place.add_incoming(following, loop)
            for phi, first, new in zip(sums, begin, later, strict=True):
                phi.add_incoming(first, before)
                phi.add_incoming(new, loop)
            builder.cbranch(builder.icmp_signed("<", following, number), loop, after)
            builder.position_at_end(after)
            for n, new in enumerate(later):
                address = builder.gep(targets[n // vectors], [LONG(LANES * (n % vectors))])
                builder.store(new, builder.bitcast(address, VECTOR.as_pointer()), align=4)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, memory, *[types.int64] * 5), generate

    return add


def _of_group(is_listed: bool):
    """Both products for any number of queries."""
    score1, score2, score3, score4 = (_score_tokens(count, is_listed) for count in range(1, 5))
    wide1, wide2, wide3, wide4 = (_add_values(count, WIDE, is_listed) for count in range(1, 5))
    thin1, thin2, thin3, thin4 = (_add_values(count, 1, is_listed) for count in range(1, 5))

    @njit(error_model="numpy")
    def score(queries, group, dim, memory, base, tokens, answer, stride):
        g = 0
        while g < group:
            query, target, left = queries + 4 * g * dim, answer + 4 * g * stride, group - g
            if left >= 4:
                score4(query, dim, memory, base, tokens, target, stride)
            elif left == 3:
                score3(query, dim, memory, base, tokens, target, stride)
            elif left == 2:
                score2(query, dim, memory, base, tokens, target, stride)
            else:
                score1(query, dim, memory, base, tokens, target, stride)
            g += 4

    @njit(error_model="numpy")
    def add(weights, stride, group, memory, base, tokens, number, dim, total):
        channel = 0
        while channel < dim:
            is_wide, g = dim - channel >= WIDE * LANES, 0
            while g < group:
                share, target, left = weights + 4 * g * stride, total + 4 * (g * (2 + dim) + channel), group - g
                place = base + channel
                if left >= 4 and is_wide:
                    wide4(share, stride, memory, place, tokens, number, dim, target)
                elif left >= 4:
                    thin4(share, stride, memory, place, tokens, number, dim, target)
                elif left == 3 and is_wide:
                    wide3(share, stride, memory, place, tokens, number, dim, target)
                elif left == 3:
                    thin3(share, stride, memory, place, tokens, number, dim, target)
                elif left == 2 and is_wide:
                    wide2(share, stride, memory, place, tokens, number, dim, target)
                elif left == 2:
                    thin2(share, stride, memory, place, tokens, number, dim, target)
                elif is_wide:
                    wide1(share, stride, memory, place, tokens, number, dim, target)
                else:
                    thin1(share, stride, memory, place, tokens, number, dim, target)
                g += 4
            channel += WIDE * LANES if is_wide else LANES

    return score, add


score_listed, add_listed = _of_group(is_listed=True)
score_run, add_run = _of_group(is_listed=False)
