# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Runs many compiled functions one after another in one parallel region, compiled by numba.

A decode step is some three hundred small operations. To start each of them from Python costs more than to compute it.
A *program* is a list of operations in memory: the address of a compiled function `void f(int64 *arguments)`, and that
of its arguments. Every thread calls all of them in order. A function takes its tasks from a counter in its arguments,
so a thread that comes late finds none left.

    stage   | query, key, value |    attention    | output | ...     operations of a stage do not wait for each other
                                ^                 ^        ^
                                nobody goes on while a thread is within the stage

The number of threads need not be known: a thread that is within a stage has been counted before it could take a task.
So if all tasks are taken and nobody is within the stage, all of them are done.
"""

from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic

from .code_cache import cfunc, njit
from .numba_memory import fetch_add, int64_at


(STAGES, INSIDE, YIELD, HEADER) = range(4)
"""Number of stages; address of their counters; address of `sched_yield`, or 0."""
(FIRST_OF_STAGE, FUNCTION, ARGUMENTS) = range(3)
OPERATION = 2
"""Numbers of an operation in memory: `FUNCTION` and `ARGUMENTS`."""
COUNTER = 8
"""Numbers from one counter to the next, so that each has a cache line of its own."""
PATIENCE = 4096
"""Rounds of waiting before a thread lets others have its core."""
_HAS_PAUSE = "x86" in binding.get_default_triple() or "amd64" in binding.get_default_triple()


@intrinsic
def _call(typing, function, arguments):
    """Call `void f(int64 *)` at an address."""

    def generate(context, builder, signature, values):
        pointer = ir.IntType(64).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer])
        function = builder.inttoptr(values[0], kind.as_pointer())
        builder.call(function, [builder.inttoptr(values[1], pointer)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def _yield_core(typing, function):
    """Call `int f(void)` at an address."""

    def generate(context, builder, signature, values):
        kind = ir.FunctionType(ir.IntType(32), [])
        builder.call(builder.inttoptr(values[0], kind.as_pointer()), [])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def _load(typing, memory, place):
    """The number at a place, as other threads have written it."""

    def generate(context, builder, signature, values):
        return builder.load_atomic(builder.gep(values[0], [values[1]]), "acquire", 8)

    return types.int64(types.CPointer(types.int64), types.int64), generate


@intrinsic
def _pause(typing):
    """Tell the processor that this is a loop of waiting."""

    def generate(context, builder, signature, values):
        if _HAS_PAUSE:
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(builder.module.declare_intrinsic("llvm.x86.sse2.pause", (), kind), [])
        return context.get_dummy_value()

    return types.void(), generate


@njit(error_model="numpy")
def _wait(inside, place, function):
    rounds = 0
    while _load(inside, place) != 0:
        _pause()
        rounds += 1
        if rounds >= PATIENCE and function != 0:
            _yield_core(function)


@cfunc(types.void(types.CPointer(types.int64)), error_model="numpy")
def run(program):
    """Run all stages. The program is `[header, first operation of every stage and the end, operations]`."""
    inside, stages = int64_at(program[INSIDE]), program[STAGES]
    operations = HEADER + stages + 1
    for stage in range(stages):
        place = stage * COUNTER
        fetch_add(inside, place, 1)
        for n in range(program[HEADER + stage], program[HEADER + stage + 1]):
            at = operations + n * OPERATION
            _call(program[at], program[at + 1])
        fetch_add(inside, place, -1)
        _wait(inside, place, program[YIELD])
