# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Helpers for numba code on torch memory: pointers from addresses, bfloat16, atomic counters, a fast exp.

bfloat16 is passed as uint16. It is the upper half of a float32, so a shift converts it to float32.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .code_cache import njit


FAST_MATH = {"reassoc", "contract", "nsz", "arcp"}
LOG2_E = np.float32(1.4426950408889634)
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
EXP_TERMS = tuple(np.float32(c) for c in (1.9875691e-4, 1.3981999e-3, 8.3334519e-3, 4.1665795e-2, 0.16666665, 0.5))
LEAST_EXPONENT = np.float32(-87.0)
HALF, ONE = np.float32(0.5), np.float32(1.0)


def _pointer(kind: types.Type):
    @intrinsic
    def pointer(typing, address):
        """Pointer to the memory at an address."""

        def generate(context, builder, signature, arguments):
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(types.int64), generate

    return pointer


float32_at, uint16_at, uint8_at = _pointer(types.float32), _pointer(types.uint16), _pointer(types.uint8)
int64_at, int32_at, uint32_at = _pointer(types.int64), _pointer(types.int32), _pointer(types.uint32)
int8_at = _pointer(types.int8)


@intrinsic
def widen(typing, x):
    """A stored number as float32."""

    def generate(context, builder, signature, arguments):
        if signature.args[0] == types.float32:
            return arguments[0]
        shifted = builder.shl(builder.zext(arguments[0], ir.IntType(32)), ir.Constant(ir.IntType(32), 16))
        return builder.bitcast(shifted, ir.FloatType())

    return types.float32(x), generate


@intrinsic
def bits_of(typing, x):
    """The bits of a float32."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.uint32(types.float32), generate


@intrinsic
def float32_of(typing, bits):
    """The float32 whose bits are the lower half of an int64."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(builder.trunc(arguments[0], ir.IntType(32)), ir.FloatType())

    return types.float32(types.int64), generate


@intrinsic
def store(typing, pointer, place, x):
    """Write a float32 to memory of either kind, rounded to nearest even where that is bfloat16."""

    def generate(context, builder, signature, arguments):
        memory, place, value = arguments
        target = builder.gep(memory, [place])
        if signature.args[0].dtype == types.float32:
            builder.store(value, target)
            return context.get_dummy_value()
        word = ir.IntType(32)
        bits = builder.bitcast(value, word)
        odd = builder.and_(builder.lshr(bits, word(16)), word(1))
        rounded = builder.lshr(builder.add(bits, builder.add(odd, word(0x7FFF))), word(16))
        is_nan = builder.fcmp_unordered("uno", value, value)
        half = builder.trunc(builder.select(is_nan, word(0x7FC0), rounded), ir.IntType(16))
        builder.store(half, target)
        return context.get_dummy_value()

    return types.void(pointer, types.int64, types.float32), generate


@intrinsic
def fetch_add(typing, pointer, place, amount):
    """Atomically add to an int64 in memory, and return its value before."""

    def generate(context, builder, signature, arguments):
        target = builder.gep(arguments[0], [arguments[1]])
        return builder.atomic_rmw("add", target, arguments[2], "seq_cst")

    return types.int64(pointer, types.int64, types.int64), generate


def ask_for(builder: ir.IRBuilder, address: ir.Value) -> None:
    """Emit the instruction of [`prefetch`] for a pointer."""
    word, byte_pointer = ir.IntType(32), ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [byte_pointer, word, word, word])
    function = builder.module.declare_intrinsic("llvm.prefetch", [byte_pointer], kind)
    builder.call(function, [builder.bitcast(address, byte_pointer), word(0), word(2), word(1)])


@intrinsic
def prefetch(typing, address):
    """Prefetch the cache line at an address into the second-level cache; any address is allowed.

    It is not the first-level cache, since the processor has few buffers for such loads and would wait for them.
    """

    def generate(context, builder, signature, arguments):
        ask_for(builder, builder.inttoptr(arguments[0], ir.IntType(8).as_pointer()))
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def power_of_two(typing, exponent):
    """2 to the power of an int32 in -126..127, as float32."""

    def generate(context, builder, signature, arguments):
        word = ir.IntType(32)
        return builder.bitcast(builder.shl(builder.add(arguments[0], word(127)), word(23)), ir.FloatType())

    return types.float32(types.int32), generate


@njit(fastmath=FAST_MATH, error_model="numpy")
def exp_of_negative(x):
    """`exp(x)` of a float32 that is not positive, to 2e-7 relative; a loop over it becomes SIMD code."""
    x = max(x, LEAST_EXPONENT)
    whole = np.int32(x * LOG2_E - HALF)
    rest = x - np.float32(whole) * LN2_HIGH - np.float32(whole) * LN2_LOW
    p = EXP_TERMS[0]
    p = p * rest + EXP_TERMS[1]
    p = p * rest + EXP_TERMS[2]
    p = p * rest + EXP_TERMS[3]
    p = p * rest + EXP_TERMS[4]
    p = p * rest + EXP_TERMS[5]
    return (p * rest * rest + rest + ONE) * power_of_two(whole)


@njit(fastmath=FAST_MATH, error_model="numpy")
def bend(scores, count, cap):
    """`cap * tanh(scores / cap)` of float32, in place."""
    for j in range(count):
        e = exp_of_negative(-abs(scores[j]) / (HALF * cap))
        bent = cap * (ONE - e) / (ONE + e)
        scores[j] = bent if scores[j] > np.float32(0.0) else -bent
