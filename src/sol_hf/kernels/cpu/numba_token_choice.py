# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The best tokens by their scores, compiled by numba: a score that all of them reach, and lists of those that do.

Scores are not negative, so their bits have the order of their values. Of equal scores the first tokens are taken.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .code_cache import njit
from .numba_memory import int32_at, uint32_at
from .numba_plane_integers import HAS_DOT_PRODUCTS
from .numba_plane_words import WORDS, every
from .numba_vectors import LONG, WORD


TOKENS = 16
"""Tokens that are listed together."""
DIGITS = 31
"""Bits of a float32 without its sign."""
BITS = ir.IntType(TOKENS)
FLAGS = ir.VectorType(ir.IntType(1), TOKENS)


@njit(error_model="numpy")
def least_chosen(bits, total, wanted):
    """The bits of the `wanted`-th largest of `total` scores, and how many scores with these bits to take."""
    least, larger = np.uint32(0), np.uint32(0)
    for digit in range(DIGITS - 1, -1, -1):
        candidate, reached = np.uint32(least | np.uint32(1 << digit)), np.uint32(0)
        for i in range(total):
            reached = np.uint32(reached + (bits[i] >= candidate))
        if reached >= np.uint32(wanted):
            least = candidate
        else:
            larger = reached
        if reached == np.uint32(wanted):  # all that reach it are taken, those that equal it among them
            return least, total
    return least, wanted - larger


def _store_chosen(builder: ir.IRBuilder, slots: ir.Value, chosen: ir.Value, listed: ir.Value) -> None:
    """Store the chosen slots one after another. What follows them, up to `TOKENS` in all, may be written, too.

    Some processors take a hundred times as long to compress into memory as into a register.
    """
    if HAS_DOT_PRODUCTS:  # it has such instructions, and numba compiles for it
        kind, name = ir.FunctionType(WORDS, [WORDS, WORDS, FLAGS]), f"llvm.x86.avx512.mask.compress.v{TOKENS}i32"
        function = cgutils.get_or_insert_function(builder.module, kind, name)
        together = builder.call(function, [slots, slots, chosen])
        builder.store(together, builder.inttoptr(listed, WORDS.as_pointer()), align=4)
    else:
        target, kind = WORD.as_pointer(), ir.FunctionType(ir.VoidType(), [WORDS, WORD.as_pointer(), FLAGS])
        name = f"llvm.masked.compressstore.v{TOKENS}i32"
        function = cgutils.get_or_insert_function(builder.module, kind, name)
        builder.call(function, [slots, builder.inttoptr(listed, target), chosen])


@intrinsic
def _append_larger(typing, bits, least, slot, listed):
    """List the tokens among 16 whose scores are larger than `least`, `slot` being the number of the first.

    Returns their number, or -1 if a score equals `least`, when nothing is listed. `bits` and `listed` are addresses.
    """

    def generate(context, builder, signature, arguments):
        bits, least, slot, listed = arguments
        scores = builder.load(builder.inttoptr(bits, WORDS.as_pointer()), align=4)
        alone = builder.insert_element(ir.Constant(WORDS, ir.Undefined), least, WORD(0))
        limit = builder.shuffle_vector(alone, alone, every(0))
        larger = builder.icmp_unsigned(">", scores, limit)
        equal = builder.bitcast(builder.icmp_unsigned("==", scores, limit), BITS)
        number = builder.ctpop(builder.bitcast(larger, BITS))
        first = builder.insert_element(ir.Constant(WORDS, ir.Undefined), builder.trunc(slot, WORD), WORD(0))
        slots = builder.add(builder.shuffle_vector(first, first, every(0)), ir.Constant(WORDS, list(range(TOKENS))))
        has_equal = builder.icmp_unsigned("!=", equal, BITS(0))
        with builder.if_then(builder.not_(has_equal)):
            _store_chosen(builder, slots, larger, listed)
        return builder.select(has_equal, LONG(-1), builder.zext(number, LONG))

    return types.int64(types.int64, types.uint32, types.int64, types.int64), generate


@njit(error_model="numpy")
def list_chosen(scores, count, least, ties, first, listed):
    """List tokens from `first` on whose scores at an address are larger than `least`, and `ties` that equal it.

    Returns their number, and how many that equal it are left to take. The list needs room for `TOKENS` more.
    """
    found, j = np.int64(0), 0
    while j < count:
        appended = np.int64(-1)
        if j + TOKENS <= count:
            appended = _append_larger(scores + 4 * j, least, first + j, listed + 4 * found)
        if appended >= 0:
            found, j = found + appended, j + TOKENS
            continue
        bits, slots = uint32_at(scores), int32_at(listed)
        for place in range(j, min(j + TOKENS, count)):
            tied = bits[place] == least and ties > 0
            ties -= tied
            if tied or bits[place] > least:
                slots[found] = first + place
                found += 1
        j += TOKENS
    return found, ties
