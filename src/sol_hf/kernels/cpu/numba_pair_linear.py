# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Product of several tokens with bfloat16 weights on the CPU, in pairs of channels, compiled by numba.

As `numba_linear`, but the lines are rounded to bfloat16 first, as the base's own modules do, so that weights need not
be widened: for several lines arithmetic takes most of the time, and this is half of it or less. A task rounds the
lines for itself, a hundredth of its work. The order of the sums depends neither on the other lines nor on the number
of threads.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .code_cache import cfunc, njit
from .numba_linear import ANSWER, BIAS, CHANNELS, LINES, NEXT, OUTPUTS, WEIGHT, X
from .numba_memory import ask_for, fetch_add, float32_at
from .numba_pairs import EACH, HAS_PAIRS, add_pairs, round_line, stack_memory
from .numba_vectors import FLOAT, LANES, LONG, VECTOR, add_lanes, load_vector


MOST_LINES = 32
DEPTH = 1536
"""Channels in a block; a multiple of those of a vector."""
TILE_LINES, TILE_OUTPUTS = 8, 3
TASK_OUTPUTS = 48
TILES_AHEAD = 2
_room = stack_memory(2 * MOST_LINES * DEPTH)


def _multiply_tile(lines: int, outputs: int):
    @intrinsic
    def multiply_tile(typing, x, weights, weight_stride, channels, ahead, answer, answer_stride):
        """`answer[i, j] += x[i] @ weights[j]`. Lines of `x` are `DEPTH` numbers apart; strides count numbers.

        `ahead` is the distance of the prefetched weights from those in use.
        """

        def generate(context, builder, signature, arguments):
            x, weights, weight_stride, channels, ahead, answer, answer_stride = arguments
            x, weights, answer = (builder.inttoptr(a, FLOAT.as_pointer()) for a in (x, weights, answer))
            line = [builder.gep(x, [LONG(n * DEPTH // 2)]) for n in range(lines)]
            stride, ahead = builder.lshr(weight_stride, LONG(1)), builder.lshr(ahead, LONG(1))
            row = [builder.gep(weights, [builder.mul(stride, LONG(n))]) for n in range(outputs)]
            before, loop = builder.block, builder.append_basic_block("loop")
            after = builder.append_basic_block("after")
            builder.branch(loop)
            builder.position_at_end(loop)
            place = builder.phi(LONG)
            place.add_incoming(LONG(0), before)
            sums = [builder.phi(VECTOR) for _ in range(lines * outputs)]
            loaded = [load_vector(builder, row[j], place) for j in range(outputs)]
            for j in range(outputs):
                ask_for(builder, builder.gep(row[j], [builder.add(place, ahead)]))
            totals: list[ir.Value] = []
            for i in range(lines):
                words = load_vector(builder, line[i], place)
                for j in range(outputs):
                    totals.append(add_pairs(builder, sums[len(totals)], words, loaded[j]))
            for total, later in zip(sums, totals, strict=True):
                total.add_incoming(VECTOR([0.0] * LANES), before)
                total.add_incoming(later, loop)
            following = builder.add(place, LONG(LANES))
            place.add_incoming(following, loop)
            end = builder.lshr(channels, LONG(1))
            builder.cbranch(builder.icmp_signed("<", following, end), loop, after)
            builder.position_at_end(after)
            for i in range(lines):
                target = builder.gep(answer, [builder.mul(answer_stride, LONG(i))])
                for j in range(outputs):
                    address = builder.gep(target, [LONG(j)])
                    total = add_lanes(builder, totals[i * outputs + j])
                    builder.store(builder.fadd(builder.load(address), total), address)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), generate

    return multiply_tile


_eight, _four, _two, _one = (_multiply_tile(lines, TILE_OUTPUTS) for lines in (8, 4, 2, 1))
_seven, _six, _five, _three = (_multiply_tile(lines, TILE_OUTPUTS) for lines in (7, 6, 5, 3))
_one_product = _multiply_tile(1, 1)


@njit(error_model="numpy")
def _multiply_lines(args, x, weights, depth, answer):
    """All lines with the outputs of one tile, over one block of channels. Only the first tile prefetches weights."""
    channels, outputs, left = args[CHANNELS], args[OUTPUTS], args[LINES]
    ahead = TILES_AHEAD * TILE_OUTPUTS * channels
    while left >= TILE_LINES:
        _eight(x, weights, channels, depth, ahead, answer, outputs)
        x, answer = x + 2 * TILE_LINES * DEPTH, answer + 4 * TILE_LINES * outputs
        left, ahead = left - TILE_LINES, 0
    if left == 7:
        _seven(x, weights, channels, depth, ahead, answer, outputs)
    elif left == 6:
        _six(x, weights, channels, depth, ahead, answer, outputs)
    elif left == 5:
        _five(x, weights, channels, depth, ahead, answer, outputs)
    elif left == 4:
        _four(x, weights, channels, depth, ahead, answer, outputs)
    elif left == 3:
        _three(x, weights, channels, depth, ahead, answer, outputs)
    elif left == 2:
        _two(x, weights, channels, depth, ahead, answer, outputs)
    elif left == 1:
        _one(x, weights, channels, depth, ahead, answer, outputs)


@njit(error_model="numpy")
def _multiply_outputs(args, room, first, last):
    """All lines with the outputs from `first` to `last`."""
    channels, outputs = args[CHANNELS], args[OUTPUTS]
    for line in range(args[LINES]):
        answer = float32_at(args[ANSWER] + 4 * line * outputs)
        for output in range(first, last):
            answer[output] = float32_at(args[BIAS])[output] if args[BIAS] else 0.0
    for begin in range(0, channels, DEPTH):
        depth = min(DEPTH, channels - begin)
        for line in range(args[LINES]):
            round_line(float32_at(args[X] + 4 * (line * channels + begin)), depth, room + 2 * line * DEPTH)
        output = first
        while output < last:
            weights, answer = args[WEIGHT] + 2 * (output * channels + begin), args[ANSWER] + 4 * output
            if output + TILE_OUTPUTS <= last:
                _multiply_lines(args, room, weights, depth, answer)
                output += TILE_OUTPUTS
                continue
            for line in range(args[LINES]):
                x = room + 2 * line * DEPTH
                _one_product(x, weights, channels, depth, 0, answer + 4 * line * outputs, outputs)
            output += 1


@cfunc(types.void(types.CPointer(types.int64)), error_model="numpy")
def multiply_pairs_bfloat16(args):
    """Takes tasks until none is left; `CHANNELS` is a multiple of the numbers of a vector, at most 32 lines."""
    room = _room()
    while True:
        first = fetch_add(args, NEXT, 1) * TASK_OUTPUTS
        if first >= args[OUTPUTS]:
            return
        _multiply_outputs(args, room, first, min(first + TASK_OUTPUTS, args[OUTPUTS]))


def fits(lines: int, channels: int) -> bool:
    """Whether the kernel is faster for so many lines of so many channels, and takes them."""
    return HAS_PAIRS and lines <= MOST_LINES and channels % EACH == 0
