# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The programs of a base, which all of its caches share.

To put one together takes some milliseconds, a third of the time that a step takes. What belongs to a cache is set
before every run: addresses of keys and values, slots, positions. A program has memory of its own for what it computes,
so that two threads need two of a kind.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .assembly import StackProgram
from .attention import Arguments
from .recognition import StackStructure
from .stages import StepKind


MOST_KEPT = 64
"""Programs that are kept for later steps; the one that was used the longest time ago is dropped first."""

Key = tuple[StepKind, int, tuple[Arguments, ...]]


class Programs:
    """Programs by kind, number of lines, and the layout of the attention.

    Args:
        structure ([`StackStructure`]): The base.
    """

    def __init__(self, structure: StackStructure):
        self._structure, self._lock = structure, threading.Lock()
        self._kept: list[tuple[Key, StackProgram]] = []
        """Those that no thread uses, the last one used last."""
        self._checked: set[StackProgram] = set()
        """Those that read the weights which the base had when the last episode began."""
        self._addresses: list[int] = []
        self._weights: list[torch.Tensor] = []
        """The weights at these addresses: their memory is not freed while programs refer to it."""
        self.check_weights()

    def check_weights(self) -> None:
        """Let later steps see weights that were moved, and copies of weights that were made again or dropped."""
        addresses = list(map(torch.Tensor.data_ptr, self._structure.weights))
        with self._lock:
            if addresses != self._addresses:
                self._kept, self._addresses = [], addresses
                self._weights = list(map(torch.Tensor.detach, self._structure.weights))
            self._checked = set()

    def clear(self) -> None:
        """Forget all programs, and with them the copies of weights that they read."""
        with self._lock:
            self._kept, self._checked, self._weights = [], set(), list(self._weights)

    @contextmanager
    def borrowed(self, kind: StepKind, lines: int, layout: tuple[Arguments, ...]) -> Iterator[StackProgram]:
        """A program that nobody else uses within the block; one in which an exception is raised is not used again."""
        key = kind, lines, layout
        with self._lock:
            weights, program = self._weights, self._taken(key)
        if program is None:
            with torch.inference_mode(False), torch.no_grad():  # later calls, of any mode, write into its memory
                program = StackProgram(self._structure, kind, lines, layout)
        yield program
        with self._lock:
            if weights is self._weights:  # not those of a base whose weights have been moved meanwhile
                self._checked.add(program)
                self._kept.append((key, program))
                for _, dropped in self._kept[:-MOST_KEPT]:
                    self._checked.discard(dropped)
                self._kept = self._kept[-MOST_KEPT:]

    def _taken(self, key: Key) -> StackProgram | None:
        """A program that is kept, which then no longer is; outdated ones are dropped."""
        for place in reversed(range(len(self._kept))):
            if self._kept[place][0] == key:
                _, program = self._kept.pop(place)
                if program in self._checked or program.is_current():
                    return program
        return None
