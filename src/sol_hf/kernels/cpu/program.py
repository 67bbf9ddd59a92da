# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A program of compiled operations, see `numba_program`: how it is put together, and how it is run."""

import ctypes
import functools
import struct
from typing import Any

import numpy as np

from .torch_threads import run_in_torch_threads


def bits_of(number: float) -> int:
    """The bits of a real number as a float32, as compiled operations take it."""
    return struct.unpack("<i", struct.pack("<f", number))[0]


@functools.lru_cache
def _yield_address() -> int:
    """Address of `sched_yield`; 0 on systems without it."""
    try:
        return ctypes.cast(ctypes.CDLL(None).sched_yield, ctypes.c_void_p).value or 0
    except (AttributeError, OSError, TypeError):
        return 0


class Program:
    """Operations in stages. Those of a stage do not depend on each other.

    Their arguments are in one array, so that all counters are set to zero at once.

    Args:
        room (`int`): Numbers that all arguments take together, at most.
    """

    def __init__(self, room: int):
        from . import numba_program as kernel

        self._kernel = kernel
        self._arguments, self._used = np.zeros(room, dtype=np.int64), 0
        self.last = self._arguments[:0]
        """Arguments of the operation that was added last."""
        self._operations: list[tuple[int, int]] = []
        self._first: list[int] = []
        self._counters: list[int] = []

    def take(self, number: int, counters: range) -> np.ndarray:
        """Memory for `number` arguments, zero; those in `counters` are zero whenever the program begins."""
        begin, self._used = self._used, self._used + number
        assert self._used <= len(self._arguments), "the room was computed from the operations"
        self._counters += [begin + place for place in counters]
        return self._arguments[begin : self._used]

    def take_rows(self, rows: int, number: int, counters: range) -> np.ndarray:
        """Memory for the arguments of `rows` operations of one kind, `(rows, number)`."""
        begin = self._used
        memory = self.take(rows * number, range(0))
        self._counters += [begin + row * number + place for row in range(rows) for place in counters]
        return memory.reshape(rows, number)

    def begin_stage(self) -> None:
        """End the running stage: later operations begin when all of it is done."""
        self._first.append(len(self._operations))

    def add(self, function: Any, arguments: np.ndarray) -> None:
        """Add an operation to the running stage: a function that `numba.cfunc` has compiled."""
        self._operations.append((function.address, arguments.ctypes.data))
        self.last = arguments

    def finish(self) -> None:
        """Put the program together; nothing can be added afterwards."""
        kernel, stages = self._kernel, len(self._first)
        self._inside = np.zeros(stages * kernel.COUNTER, dtype=np.int64)
        header = [stages, self._inside.ctypes.data, _yield_address(), *self._first, len(self._operations)]
        self._memory = np.array([*header, *(n for pair in self._operations for n in pair)], dtype=np.int64)
        self._zeros = np.array(self._counters, dtype=np.int64)

    def run(self) -> None:
        """Run all operations in torch's threads, and wait for them."""
        self._arguments[self._zeros] = 0
        run_in_torch_threads(self._kernel.run.address, self._memory.ctypes.data)
