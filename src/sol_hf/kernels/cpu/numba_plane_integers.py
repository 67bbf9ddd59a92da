# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Lines times a tile of 16 outputs in nested planes, by dot products of bytes (AVX-512 VNNI).

The inputs of a group of 64 channels are rounded to whole numbers of 24 bits, `x = step * X`, which is half a unit in
the last place of the largest of them. A whole number is three digits to the base 256, `X = 65536 a + 256 b + c`, each
a signed byte. An instruction multiplies the digits of four channels with the codes of 16 outputs and adds up:

    codes           16 words of 4 bytes, as they are put together from the planes
    digits          4 bytes, the same for all outputs
    sums of a line  16 words each for a, b and c

Sums of whole numbers are exact, so they depend neither on their order nor on the other lines. At the end of a group
they become float32, times the step and the scales of the group.

    record of a line and group    a (16 words) | b | c | -128 sum(256 a + b) | -128 sum(c) | step | sum(X), float32
"""

import functools
from collections.abc import Iterable, Iterator
from typing import Protocol

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ...selection.nested_planes import CHANNELS, CODE_BITS, GROUP, MIDDLE, OUTPUTS
from .code_cache import njit
from .numba_plane_words import (
    EVEN_FIRST,
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
from .numba_vectors import FLOAT, LONG, WORD, add_product, has_features


HAS_DOT_PRODUCTS = has_features("avx512f", "avx512vnni")
"""Whether the processor has dot products of bytes with 16 sums."""
LINES = (8, 4, 2, 1)
"""Numbers of lines for which a weight is put together once: the sums of 8 take 24 of 32 registers."""
DIGITS, QUADS = 3, GROUP // 4
(HIGH_START, LOW_START, STEP, TOTAL, RECORD) = range(DIGITS * QUADS, DIGITS * QUADS + 5)
"""Places in a record, in words of 4 bytes, and its length."""
DOT_PRODUCT = "llvm.x86.avx512.vpdpbusd.512"
"""Adds to every word the products of its four bytes of codes with its four signed digits."""
LARGEST = 8355000.0
"""Largest whole number whose digits are signed bytes, with a margin for rounding."""
LEAST_STEP = 1e-37
"""So that its reciprocal is finite."""


def _reduced(builder: ir.IRBuilder, name: str, vector: ir.Value) -> ir.Value:
    kind = ir.FunctionType(vector.type.element, [vector.type])
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.{name}")
    return builder.call(function, [vector])


def _called(builder: ir.IRBuilder, name: str, *values: ir.Value) -> ir.Value:
    kind = ir.FunctionType(values[0].type, [value.type for value in values])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), values)


def _digit(builder: ir.IRBuilder, wholes: ir.Value) -> tuple[ir.Value, ir.Value]:
    """The last digit of whole numbers, in -128..127, and the number that the digits before it are."""
    moved = builder.add(wholes, every(128))
    last = builder.sub(builder.and_(moved, every(255)), every(128))
    return last, builder.ashr(builder.sub(wholes, last), every(8))


@intrinsic
def _record(typing, x, record):
    """Write the record of a group of channels, all at addresses."""

    def generate(context, builder, signature, arguments):
        source = builder.inttoptr(arguments[0], NUMBERS.as_pointer())
        numbers = [builder.load(builder.gep(source, [LONG(n)]), align=4) for n in range(GROUP // OUTPUTS)]
        largest = every_number(0.0)
        for vector in numbers:
            size = _called(builder, "llvm.fabs.v16f32", vector)
            largest = builder.select(builder.fcmp_ordered(">", size, largest), size, largest)
        step = builder.fdiv(_reduced(builder, "fmax.v16f32", largest), FLOAT(LARGEST))
        step = builder.select(builder.fcmp_ordered(">", step, FLOAT(LEAST_STEP)), step, FLOAT(LEAST_STEP))
        inverse = spread(builder, builder.fdiv(FLOAT(1.0), step))
        target = builder.inttoptr(arguments[1], WORD.as_pointer())
        highs, lows, totals = every(0), every(0), every_number(0.0)
        order = [8 * half + n for half in (0, 1) for n in EVEN_FIRST]
        permutation = ir.Constant(ir.VectorType(WORD, OUTPUTS), order)
        for n, vector in enumerate(numbers):
            scaled = _called(builder, "llvm.rint.v16f32", builder.fmul(vector, inverse))
            totals = builder.fadd(totals, builder.fmul(vector, inverse))
            wholes = builder.fptosi(scaled, WORDS)
            c, rest = _digit(builder, wholes)
            b, a = _digit(builder, rest)
            highs, lows = builder.add(highs, rest), builder.add(lows, c)
            for digit, values in enumerate((a, b, c)):
                values = builder.shuffle_vector(values, values, permutation)
                memory = builder.gep(target, [LONG(QUADS * digit + 4 * n)])
                kind = ir.VectorType(ir.IntType(8), OUTPUTS)
                builder.store(builder.trunc(values, kind), builder.bitcast(memory, kind.as_pointer()), align=4)
        for place, sums in ((HIGH_START, highs), (LOW_START, lows)):
            start = builder.mul(_reduced(builder, "add.v16i32", sums), WORD(-MIDDLE))
            builder.store(start, builder.gep(target, [LONG(place)]))
        total = ir.Constant(FLOAT, 0.0)
        for n in range(OUTPUTS):
            total = builder.fadd(total, builder.extract_element(totals, WORD(n)))
        for place, number in ((STEP, step), (TOTAL, total)):
            memory = builder.bitcast(builder.gep(target, [LONG(place)]), FLOAT.as_pointer())
            builder.store(number, memory)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@njit(error_model="numpy")
def prepare_together(x, scratch, line, together, groups):
    """Write the records of lines that are multiplied together, one group after another."""
    for group in range(groups):
        for i in range(together):
            source = x + 4 * ((line + i) * groups + group) * GROUP
            _record(source, scratch + 4 * RECORD * ((line * groups) + group * together + i))


@njit(error_model="numpy")
def prepare_lines(x, scratch, lines, blocks):
    """Write the records of all lines."""
    groups, line = (blocks * CHANNELS + GROUP - 1) // GROUP, 0
    while line < lines:
        together = lines_together(lines - line)
        prepare_together(x, scratch, line, together, groups)
        line += together


@njit(error_model="numpy")
def lines_together(left):
    """How many of the lines that are left are multiplied together."""
    return 8 if left >= 8 else 4 if left >= 4 else 2 if left >= 2 else 1


class _Sums:
    """The sums of some lines over a group, in registers, while LLVM code for it is written.

    Args:
        builder (`ir.IRBuilder`): Where the code goes.
        records (`ir.Value`): Pointer to the records of the lines.
        lines (`int`): Their number.
    """

    def __init__(self, builder: ir.IRBuilder, records: ir.Value, lines: int):
        self.builder, self.records, self.lines = builder, records, lines
        self.chains = 2 if lines == 1 else 1
        self.values = []
        for line in range(lines):
            starts = [spread(builder, self.load(line, LONG(place))) for place in (HIGH_START, LOW_START)]
            for start in (every(0), *starts):
                self.values += [start, every(0)][: self.chains]

    def load(self, line: int, place: ir.Value, kind: ir.Type = WORD) -> ir.Value:
        """A word or a float32 of the record of a line."""
        memory = self.builder.gep(self.records, [self.builder.add(place, LONG(RECORD * line))])
        return self.builder.load(self.builder.bitcast(memory, kind.as_pointer()), align=4)

    def add(self, codes: tuple[ir.Value, ir.Value], quad: ir.Value) -> None:
        """Add the products of the codes of 8 channels with the digits of two quads."""
        for n, word in enumerate(codes):
            for line in range(self.lines):
                for digit in range(DIGITS):
                    place = self.builder.add(quad, LONG(QUADS * digit + n))
                    k = (DIGITS * line + digit) * self.chains + n % self.chains
                    digits = spread(self.builder, self.load(line, place))
                    self.values[k] = _called(self.builder, DOT_PRODUCT, self.values[k], word, digits)

    def number(self, line: int, half: ir.Value, scale: ir.Value) -> tuple[ir.Value, ir.Value]:
        """What a group adds to the answer of a line, as a number and what it has to be multiplied by."""
        builder, each = self.builder, self.chains
        first = [(DIGITS * line + digit) * each for digit in range(DIGITS)]
        a, b, c = (functools.reduce(builder.add, self.values[k : k + each]) for k in first)
        high = builder.sitofp(builder.add(builder.shl(a, every(8)), b), NUMBERS)
        number = add_product(builder, builder.sitofp(c, NUMBERS), high, every_number(256.0))
        total = spread(builder, self.load(line, LONG(TOTAL), FLOAT))
        number = add_product(builder, number, total, half)
        return number, builder.fmul(scale, spread(builder, self.load(line, LONG(STEP), FLOAT)))

    def add_blocks(self, source: "Source", first: ir.Value, number: ir.Value, after: ir.Block) -> ir.Block:
        """Add `number` blocks from the block `first` on, in a loop that goes on to `after`."""
        builder, before = self.builder, self.builder.block
        loop = builder.append_basic_block("block")
        builder.branch(loop)
        builder.position_at_end(loop)
        block = builder.phi(LONG)
        block.add_incoming(LONG(0), before)
        starts, entered = self.values, [builder.phi(WORDS) for _ in self.values]
        self.values = list(entered)
        for part, codes in enumerate(source.codes(builder.add(first, block))):
            self.add(codes, builder.add(builder.mul(block, LONG(CHANNELS // 4)), LONG(2 * part)))
        following = builder.add(block, LONG(1))
        block.add_incoming(following, loop)
        for value, start, later in zip(entered, starts, self.values, strict=True):
            value.add_incoming(start, before)
            value.add_incoming(later, loop)
        builder.cbranch(builder.icmp_signed("<", following, number), loop, after)
        builder.position_at_end(after)
        return after


class Source(Protocol):
    """Where the codes of a tile come from, while LLVM code for a product is written."""

    half: ir.Value
    """Half a cell in units of a code: what is added to a code that is read as a whole number."""

    def codes(self, block: ir.Value) -> Iterable[tuple[ir.Value, ir.Value]]:
        """The codes of a block of channels, 8 channels at a time: those with even numbers, and the others."""

    def begin(self, memory: ir.Value) -> ir.Value:
        """The sum to which the products are added, for a line whose answer is at an address."""


class _FromPlanes:
    """Codes that are put together in registers from planes of a width that is known when code is written."""

    def __init__(self, width: int, builder: ir.IRBuilder, addresses: list[ir.Value]):
        count = planes_read(width)
        self.builder, self.half = builder, every_number(2.0 ** (CODE_BITS - width) / 2)
        self._memory = [builder.inttoptr(plane, WORDS.as_pointer()) for plane in addresses[:count]]

    def codes(self, block: ir.Value) -> Iterator[tuple[ir.Value, ir.Value]]:
        words = load_block(self.builder, self._memory, block)
        return (code_bytes(self.builder, words, part) for part in range(CHANNELS // 8))

    def begin(self, memory: ir.Value) -> ir.Value:
        return every_number(0.0)


class _FromCodes:
    """Codes that are in memory, of which the bits that are read are known when the product runs.

    They are at an address, followed by a mask of the bits that are read, and half a cell as the bits of a float32.
    """

    def __init__(self, builder: ir.IRBuilder, addresses: list[ir.Value]):
        self.builder, (codes, mask, half, _) = builder, addresses
        self._memory = builder.inttoptr(codes, WORDS.as_pointer())
        self._mask = spread(builder, builder.trunc(mask, WORD))
        self.half = spread(builder, builder.bitcast(builder.trunc(half, WORD), FLOAT))

    def codes(self, block: ir.Value) -> Iterator[tuple[ir.Value, ir.Value]]:
        for part in range(CHANNELS // 8):
            place = self.builder.add(self.builder.mul(block, LONG(CHANNELS // 4)), LONG(2 * part))
            even, odd = (self.builder.gep(self._memory, [self.builder.add(place, LONG(n))]) for n in (0, 1))
            words = (self.builder.load(memory, align=4) for memory in (even, odd))
            yield tuple(self.builder.and_(word, self._mask) for word in words)

    def begin(self, memory: ir.Value) -> ir.Value:
        return self.builder.load(self.builder.bitcast(memory, NUMBERS.as_pointer()), align=4)


def multiply_tile(lines: int, width: int | None):
    """The function that multiplies `lines` lines with a tile read in `width` bits.

    Without a width, `plane0` is the address of codes in memory, `plane1` a mask of the bits that are read of each, and
    `plane2` half a cell; and products are added to what the answer is.
    """
    per_group = GROUP // CHANNELS

    @intrinsic
    def multiply(typing, records, blocks, scales, plane0, plane1, plane2, plane3, answer, stride):
        """`answer[i] = x[i] @ weight.T` for one tile, all at addresses; lines of the answer are `stride` apart."""

        def generate(context, builder, signature, arguments):
            records, blocks, scales, *planes, answer, stride = arguments
            records = builder.inttoptr(records, WORD.as_pointer())
            source = _FromCodes(builder, planes) if width is None else _FromPlanes(width, builder, planes)
            scale_memory = builder.inttoptr(scales, HALVES.as_pointer())
            target = builder.inttoptr(answer, FLOAT.as_pointer())
            answers = [builder.gep(target, [builder.mul(stride, LONG(i))]) for i in range(lines)]
            starts = [source.begin(memory) for memory in answers]
            before, loop = builder.block, builder.append_basic_block("group")
            builder.branch(loop)
            builder.position_at_end(loop)
            first = builder.phi(LONG)
            first.add_incoming(LONG(0), before)
            totals = [builder.phi(NUMBERS) for _ in range(lines)]
            group = builder.udiv(first, LONG(per_group))
            sums = _Sums(builder, builder.gep(records, [builder.mul(group, LONG(RECORD * lines))]), lines)
            rest = builder.sub(blocks, first)
            number = builder.select(builder.icmp_signed("<", rest, LONG(per_group)), rest, LONG(per_group))
            flush = sums.add_blocks(source, first, number, builder.append_basic_block("flush"))
            scale, later = load_scale(builder, scale_memory, group), []
            for i, total in enumerate(totals):
                later.append(add_product(builder, total, *sums.number(i, source.half, scale)))
                total.add_incoming(starts[i], before)
                total.add_incoming(later[i], flush)
            following = builder.add(first, LONG(per_group))
            first.add_incoming(following, flush)
            after = builder.append_basic_block("after")
            builder.cbranch(builder.icmp_signed("<", following, blocks), loop, after)
            builder.position_at_end(after)
            for memory, total in zip(answers, later, strict=True):
                builder.store(total, builder.bitcast(memory, NUMBERS.as_pointer()), align=4)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 9), generate

    return multiply
