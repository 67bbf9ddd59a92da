# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""LLVM instructions that put the codes of weights together from nested planes, 16 outputs at a time.

A vector has a word for each of 16 outputs. Of 8 channels at a time, the bits of all planes are put together in two
words of four bytes, in a few instructions for all of them: the codes of the channels with even numbers, and those of
the others. Bits that are not read are zero.
"""

from llvmlite import ir

from ...selection.nested_planes import CODE_BITS, OUTPUTS, PLANES
from .numba_memory import ask_for
from .numba_vectors import FLOAT, LONG, WORD


PREFETCHED = 4096
"""Bytes of the first plane between those that are prefetched and those in use."""
EVEN_FIRST = (0, 2, 4, 6, 1, 3, 5, 7)
"""Channels of 8 in the order of the bytes of [`code_bytes`]."""
WORDS, NUMBERS, HALVES = (ir.VectorType(kind, OUTPUTS) for kind in (WORD, FLOAT, ir.IntType(16)))


def every(number: int) -> ir.Constant:
    """The same word for all outputs."""
    return ir.Constant(WORDS, [number] * OUTPUTS)


def every_number(number: float) -> ir.Constant:
    """The same float32 for all outputs."""
    return ir.Constant(NUMBERS, [number] * OUTPUTS)


def spread(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """A word or a float32 for all outputs."""
    kind = ir.VectorType(value.type, OUTPUTS)
    alone = builder.insert_element(ir.Constant(kind, ir.Undefined), value, WORD(0))
    return builder.shuffle_vector(alone, alone, ir.Constant(WORDS, [0] * OUTPUTS))


def moved(builder: ir.IRBuilder, word: ir.Value, places: int, mask: int) -> ir.Value:
    """The bits of `mask` in a word that is shifted up by `places`, or down where they are negative."""
    if places:
        shift = builder.shl if places > 0 else builder.lshr
        word = shift(word, every(abs(places)))
    return builder.and_(word, every(mask))


def planes_read(width: int) -> int:
    """Number of planes that reading `width` bits takes."""
    return next(n for n in range(1, len(PLANES) + 1) if sum(PLANES[:n]) == width)


def load_block(builder: ir.IRBuilder, memory: list[ir.Value], block: ir.Value) -> list[list[ir.Value]]:
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


def load_scale(builder: ir.IRBuilder, memory: ir.Value, group: ir.Value) -> ir.Value:
    """The scales of a group of channels, as float32."""
    half = builder.load(builder.gep(memory, [group]), align=2)
    return builder.bitcast(builder.shl(builder.zext(half, WORDS), every(16)), NUMBERS)


def low_nibbles(builder: ir.IRBuilder, planes: list[list[ir.Value]], part: int) -> ir.Value:
    """The last 4 bits of the codes of 8 channels, those that are not read zero, from all planes but the first."""
    nibbles, left = None, CODE_BITS - PLANES[0]
    for bits, plane in zip(PLANES[1:], planes, strict=False):
        left -= bits
        each = 4 // bits
        mask = 0x11111111 * ((2**bits - 1) << left)
        field = moved(builder, plane[part // each], left - bits * (part % each), mask)
        nibbles = field if nibbles is None else builder.or_(nibbles, field)
    return nibbles


def code_bytes(builder: ir.IRBuilder, planes: list[list[ir.Value]], part: int) -> tuple[ir.Value, ir.Value]:
    """The codes of 8 channels, a byte each: those with even numbers, and the others."""
    high = planes[0][part]
    even, odd = moved(builder, high, 4, 0xF0F0F0F0), moved(builder, high, 0, 0xF0F0F0F0)
    if len(planes) == 1:
        return even, odd
    low = low_nibbles(builder, planes[1:], part)
    even = builder.or_(even, moved(builder, low, 0, 0x0F0F0F0F))
    return even, builder.or_(odd, moved(builder, low, -4, 0x0F0F0F0F))
