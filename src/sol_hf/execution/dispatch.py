# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Operations with several implementations, and the choice of one of them for every call.

An [`Operation`] is a registry of [`Implementation`]s, one per file. Each of them checks whether it can compute a call.
Of those that can, the backend chooses:

    "reference"   the first in order, plain torch or the base's own code
    "fast"        the last in order
    "auto"        the one that is measured to be the fastest, see `autotune.py`; without measurements, the first

Implementations of an operation agree up to rounding.
"""

from collections.abc import Callable, Hashable
from typing import ClassVar, Generic, Protocol, TypeVar

import torch

from ..registry import Registry
from .autotune import known_fastest, run_fastest


class Call(Protocol):
    """The arguments of an operation."""

    def situation(self) -> Hashable:
        """The key for measured times, coarse enough to occur repeatedly."""


AnyCall = TypeVar("AnyCall", bound=Call)
Prepared = Callable[[], torch.Tensor]


class Implementation(Generic[AnyCall]):
    """One way to compute an operation.

    Class attributes:
        order (`int`): Position among the implementations; later ones are expected to be faster.
        is_measured (`bool`): Whether `backend="auto"` measures it. One that is not measured is used for every call
            that it can compute. This holds for GPU kernels: a launch returns before the kernel has run.
        is_fallback (`bool`): Whether it is considered only if no later implementation can be used. It may be slower
            than the first, and is therefore used only if it is measured to be faster.
    """

    order: ClassVar[int]
    is_measured: ClassVar[bool] = True
    is_fallback: ClassVar[bool] = False

    def prepare(self, call: AnyCall) -> Prepared | None:
        """The computation of a call as a function to run; `None` if this implementation cannot be used.

        Time spent here is not part of the measured time.
        """
        raise NotImplementedError


class Operation(Registry[Implementation[AnyCall]]):
    """The implementations of one operation by name.

    Args:
        kind (`str`): The operation, for messages.
        package (`str`): Dotted name of the package whose modules register the implementations.
    """

    def __init__(self, kind: str, package: str):
        super().__init__(kind, package)
        self._ordered: tuple[tuple[str, Implementation[AnyCall]], ...] | None = None

    def register(self, name: str, member: Implementation[AnyCall]) -> Implementation[AnyCall]:
        self._ordered = None
        return super().register(name, member)

    def unregister(self, name: str) -> None:
        self._ordered = None
        super().unregister(name)

    @property
    def ordered(self) -> tuple[tuple[str, Implementation[AnyCall]], ...]:
        """Names and implementations in their order."""
        if self._ordered is None:
            self._ordered = tuple(sorted(self.items(), key=lambda item: item[1].order))
        return self._ordered

    def usable(self, call: AnyCall) -> dict[str, Prepared]:
        """The prepared computations of a call, by name, of all implementations that can compute it, in order."""
        prepared = {name: implementation.prepare(call) for name, implementation in self.ordered}
        return {name: run for name, run in prepared.items() if run is not None}

    def run(self, call: AnyCall, backend: str, is_timed: bool) -> torch.Tensor | None:
        """Compute a call.

        Args:
            call: The arguments.
            backend (`str`): `"reference"`, `"fast"` or `"auto"`.
            is_timed (`bool`): Whether `"auto"` may measure this call.

        Returns:
            `torch.Tensor`: The result; `None` if no implementation can be used.
        """
        if backend == "auto":
            return self._run_fastest(call, is_timed)
        return self._run_first(call) if backend == "reference" else self._run_last(call)

    def _run_first(self, call: AnyCall) -> torch.Tensor | None:
        for _, implementation in self._ordered or self.ordered:
            prepared = implementation.prepare(call)
            if prepared is not None:
                return prepared()
        return None

    def _run_last(self, call: AnyCall) -> torch.Tensor | None:
        for _, implementation in reversed(self._ordered or self.ordered):
            prepared = None if implementation.is_fallback else implementation.prepare(call)
            if prepared is not None:
                return prepared()
        return None

    def _run_fastest(self, call: AnyCall, is_timed: bool) -> torch.Tensor | None:
        situation = call.situation() if is_timed else None
        known = known_fastest(situation) if is_timed else None
        if known in self._members:  # the common case: prepare nothing else
            prepared = self._members[known].prepare(call)
            if prepared is not None:
                return prepared()
        usable: dict[str, Prepared] = {}
        for name, implementation in reversed(self._ordered or self.ordered):
            if (implementation.is_measured and not is_timed) or (implementation.is_fallback and usable):
                continue
            prepared = implementation.prepare(call)
            if prepared is not None:
                if not implementation.is_measured:
                    return prepared()
                usable[name] = prepared
        if len(usable) < 2:
            return self._run_first(call) if not usable else next(iter(usable.values()))()
        return run_fastest(situation, {name: usable[name] for name in reversed(usable)})
