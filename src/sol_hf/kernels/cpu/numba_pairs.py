# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Products of bfloat16 numbers two at a time, added up in float32.

Some processors multiply pairs of bfloat16 numbers and add both products in one instruction. That is twice the
arithmetic of float32, and nothing has to be widened. Two neighbours are one word of 32 bits:

    word        | number 2n + 1 | number 2n |        a vector has a word per lane
    add_pairs   total[i] + low(a[i]) * low(b[i]) + high(a[i]) * high(b[i])
"""

from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic

from .code_cache import njit
from .numba_memory import store, uint16_at
from .numba_vectors import LANES, LONG, VECTOR, has_features


HAS_PAIRS = has_features("avx512f", "avx512bf16")
"""Whether the processor has the instruction. Without it nothing of this is used: float32 is faster then."""
if HAS_PAIRS:
    binding.initialize_native_asmparser()  # the instruction is written by its name, which LLVM has to read
EACH = 2 * LANES
"""Numbers of a vector of words."""


def add_pairs(builder: ir.IRBuilder, total: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
    """The products of the pairs of two vectors of words, which have the type of float32, added to one of float32."""
    kind = ir.FunctionType(VECTOR, [VECTOR] * 3)
    return builder.asm(kind, "vdpbf16ps $3, $2, $0", "=v,0,v,v", [total, a, b], side_effect=False)


def stack_memory(size: int):
    """A function for numba code that returns the address of `size` bytes, which are free when its caller returns."""

    @intrinsic
    def memory(typing):
        def generate(context, builder, signature, arguments):
            with builder.goto_entry_block():  # not by numba's helper, which would write zeros, number by number
                room = builder.alloca(ir.ArrayType(ir.IntType(8), size))
            room.align = 64
            return builder.ptrtoint(room, LONG)

        return types.int64(), generate

    return memory


@njit(error_model="numpy")
def round_line(source, count, target):
    """Write `count` float32 numbers to an address, rounded to bfloat16."""
    halves = uint16_at(target)
    for n in range(count):
        store(halves, n, source[n])
