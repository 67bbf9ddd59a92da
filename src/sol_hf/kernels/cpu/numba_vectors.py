# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""LLVM vector instructions for numba code: loads, broadcasts, and products that are added up."""

import numba
from llvmlite import binding, ir
from numba.core import cgutils

from .numba_memory import FAST_MATH


def has_features(*names: str) -> bool:
    """Whether numba compiles for a processor with some features, by the names that LLVM gives them.

    It compiles for this one, unless NUMBA_CPU_NAME or NUMBA_CPU_FEATURES name another.
    """
    if numba.config.CPU_NAME is not None or numba.config.CPU_FEATURES is not None:
        told = (numba.config.CPU_FEATURES or "").split(",")
        return all(f"+{name}" in told for name in names)
    try:
        features = binding.get_host_cpu_features()
    except RuntimeError:  # LLVM does not know them on every processor
        return False
    return all(features.get(name) for name in names)


HAS_WIDE_VECTORS = has_features("avx512f")
LANES = 16 if HAS_WIDE_VECTORS else 8
"""Numbers in a vector."""
FLOAT, WORD, LONG = ir.FloatType(), ir.IntType(32), ir.IntType(64)
VECTOR = ir.VectorType(FLOAT, LANES)


def load_vector(builder: ir.IRBuilder, line: ir.Value, place: ir.Value) -> ir.Value:
    """Load a vector of the numbers from `place` on, as float32; bfloat16 is widened."""
    address = builder.gep(line, [place])
    if line.type.pointee == FLOAT:
        return builder.load(builder.bitcast(address, VECTOR.as_pointer()), align=4)
    halves, words = ir.VectorType(ir.IntType(16), LANES), ir.VectorType(WORD, LANES)
    wide = builder.zext(builder.load(builder.bitcast(address, halves.as_pointer()), align=2), words)
    return builder.bitcast(builder.shl(wide, words([16] * LANES)), VECTOR)


def spread(builder: ir.IRBuilder, number: ir.Value) -> ir.Value:
    """A vector of one number."""
    alone = builder.insert_element(ir.Constant(VECTOR, ir.Undefined), number, WORD(0))
    return builder.shuffle_vector(alone, alone, ir.Constant(ir.VectorType(WORD, LANES), [0] * LANES))


def add_product(builder: ir.IRBuilder, total: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
    """`total + a * b`, in one instruction where the processor has it."""
    product = builder.fmul(a, b, flags=("contract",))
    return builder.fadd(total, product, flags=("contract",))


def add_lanes(builder: ir.IRBuilder, vector: ir.Value) -> ir.Value:
    """The sum of the numbers in a vector."""
    kind = ir.FunctionType(FLOAT, [FLOAT, VECTOR])
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.fadd.v{LANES}f32")
    return builder.call(function, [FLOAT(0.0), vector], fastmath=tuple(FAST_MATH))
