# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Product of a few tokens with the weights of a linear layer on the CPU, compiled by numba.

Weights are read once, in the layout of `nn.Linear`. A *line* is the input of one token. The sums of a tile of lines
and outputs are in vector registers. Meanwhile the weights of a later tile are prefetched into the second-level cache.
Without the prefetch a core waits for memory more than half of the time.

    weight   outputs   |  task 0: 48 outputs  |  task 1  | ...        threads take tasks by a counter
    (outputs,           \\ blocks of DEPTH channels, one after another: their part of the lines stays in the L1 cache
     channels)             \\ tile: 3 outputs x 8, 4, 2 or 1 lines

The order of the sums depends neither on the other lines nor on the number of threads. Lines and outputs are float32.
Weights are float32 or bfloat16, which is widened in the registers.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .code_cache import cfunc, njit
from .numba_memory import ask_for, fetch_add, float32_at, uint16_at
from .numba_vectors import FLOAT, HAS_WIDE_VECTORS, LANES, LONG, VECTOR, add_lanes, add_product, load_vector


(X, WEIGHT, BIAS, ANSWER, LINES, CHANNELS, OUTPUTS, NEXT) = range(8)
TILE_LINES = 8 if HAS_WIDE_VECTORS else 4
TILE_OUTPUTS = 3
"""Outputs in a tile: its sums, its weights and one vector of a line fit into the registers."""
TASK_OUTPUTS = 48
DEPTH = 768
"""Channels in a block."""
TILES_AHEAD = 2


def _lines_of(builder: ir.IRBuilder, memory: ir.Value, stride: ir.Value, count: int) -> list[ir.Value]:
    """Pointers to the first numbers of `count` lines that are `stride` numbers apart."""
    memory = builder.inttoptr(memory, FLOAT.as_pointer())
    return [builder.gep(memory, [builder.mul(stride, LONG(n))]) for n in range(count)]


def _multiply_tile(lines: int, outputs: int):
    @intrinsic
    def multiply_tile(typing, x, x_stride, weights, first, weight_stride, channels, ahead, answer, answer_stride):
        """`answer[i, j] += x[i] @ weight[j]`, with weights that begin at `first`. Offsets and strides count numbers.

        `ahead` is the distance of the prefetched weights from those in use.
        """

        def generate(context, builder, signature, arguments):
            x, x_stride, weights, first, weight_stride, channels, ahead, answer, answer_stride = arguments
            line = _lines_of(builder, x, x_stride, lines)
            begins = [builder.add(first, builder.mul(weight_stride, LONG(n))) for n in range(outputs)]
            row = [builder.gep(weights, [begin]) for begin in begins]
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
                numbers = load_vector(builder, line[i], place)
                for j in range(outputs):
                    totals.append(add_product(builder, sums[len(totals)], numbers, loaded[j]))
            for total, later in zip(sums, totals, strict=True):
                total.add_incoming(VECTOR([0.0] * LANES), before)
                total.add_incoming(later, loop)
            following = builder.add(place, LONG(LANES))
            place.add_incoming(following, loop)
            builder.cbranch(builder.icmp_signed("<", following, channels), loop, after)
            builder.position_at_end(after)
            for i, target in enumerate(_lines_of(builder, answer, answer_stride, lines)):
                for j in range(outputs):
                    address = builder.gep(target, [LONG(j)])
                    total = add_lanes(builder, totals[i * outputs + j])
                    builder.store(builder.fadd(builder.load(address), total), address)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, weights, *[types.int64] * 6), generate

    return multiply_tile


_many_lines, _two_lines = _multiply_tile(TILE_LINES, TILE_OUTPUTS), _multiply_tile(2, TILE_OUTPUTS)
_half_lines = _multiply_tile(TILE_LINES // 2, TILE_OUTPUTS)
_one_line, _one_product = _multiply_tile(1, TILE_OUTPUTS), _multiply_tile(1, 1)


@njit(error_model="numpy")
def _begin_answer(args, first, last):
    """Set outputs to the bias, or to zero."""
    for line in range(args[LINES]):
        answer = float32_at(args[ANSWER] + 4 * line * args[OUTPUTS])
        for output in range(first, last):
            answer[output] = float32_at(args[BIAS])[output] if args[BIAS] else 0.0


@njit(error_model="numpy")
def _multiply_lines(args, x, weights, first, depth, answer):
    """All lines with the outputs of one tile, over one block of channels. Only the first tile prefetches weights."""
    channels, outputs = args[CHANNELS], args[OUTPUTS]
    ahead, line = TILES_AHEAD * TILE_OUTPUTS * channels, 0
    while args[LINES] - line >= TILE_LINES:
        _many_lines(x, channels, weights, first, channels, depth, ahead, answer, outputs)
        x, answer = x + 4 * TILE_LINES * channels, answer + 4 * TILE_LINES * outputs
        line, ahead = line + TILE_LINES, 0
    if args[LINES] - line >= TILE_LINES // 2:
        _half_lines(x, channels, weights, first, channels, depth, ahead, answer, outputs)
        x, answer = x + 2 * TILE_LINES * channels, answer + 2 * TILE_LINES * outputs
        line, ahead = line + TILE_LINES // 2, 0
    while args[LINES] - line >= 2:
        _two_lines(x, channels, weights, first, channels, depth, ahead, answer, outputs)
        x, answer = x + 8 * channels, answer + 8 * outputs
        line, ahead = line + 2, 0
    if line < args[LINES]:
        _one_line(x, channels, weights, first, channels, depth, ahead, answer, outputs)


@njit(error_model="numpy")
def _multiply_outputs(args, weights, first, last):
    """All lines with the outputs from `first` to `last`."""
    channels, outputs = args[CHANNELS], args[OUTPUTS]
    _begin_answer(args, first, last)
    for begin in range(0, channels, DEPTH):
        depth, x = min(DEPTH, channels - begin), args[X] + 4 * begin
        output = first
        while output + TILE_OUTPUTS <= last:
            _multiply_lines(args, x, weights, output * channels + begin, depth, args[ANSWER] + 4 * output)
            output += TILE_OUTPUTS
        while output < last:
            place = output * channels + begin
            for line in range(args[LINES]):
                answer = args[ANSWER] + 4 * (line * outputs + output)
                _one_product(x + 4 * line * channels, channels, weights, place, channels, depth, 0, answer, outputs)
            output += 1


@njit(error_model="numpy")
def _multiply(args, weights):
    """Takes tasks until none is left."""
    while True:
        first = fetch_add(args, NEXT, 1) * TASK_OUTPUTS
        if first >= args[OUTPUTS]:
            return
        _multiply_outputs(args, weights, first, min(first + TASK_OUTPUTS, args[OUTPUTS]))


@cfunc(types.void(types.CPointer(types.int64)), error_model="numpy")
def multiply_float32(args):
    _multiply(args, float32_at(args[WEIGHT]))


@cfunc(types.void(types.CPointer(types.int64)), error_model="numpy")
def multiply_bfloat16(args):
    _multiply(args, uint16_at(args[WEIGHT]))
