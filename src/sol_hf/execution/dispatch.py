# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Operations with several implementations, and the choice of one of them for every call.

An [`Operation`] is a registry of [`Implementation`]s, one per file. Each of them says which calls it can compute. Of
those that can, the backend chooses:

    "reference"   the first in order, plain torch or the base's own code
    "fast"        the last in order
    "auto"        the last in order that is expected to be faster: see [`Implementation.suits`]

Implementations of an operation agree up to rounding. The choice depends on nothing but the call: its shapes, dtype,
levels and number of threads. No times are measured, so equal calls have equal results to the bit, in every process.
What the rules of `suits` are based on was measured, see `docs/performance.md`.
"""

from collections.abc import Callable
from typing import ClassVar, Generic, TypeVar

import torch

from ..registry import Registry


AnyCall = TypeVar("AnyCall")
Prepared = Callable[[], torch.Tensor]


class Implementation(Generic[AnyCall]):
    """One way to compute an operation.

    Class attributes:
        order (`int`): Position among the implementations; later ones are expected to be faster.
        is_fallback (`bool`): Whether `backend="fast"` leaves it out, because it may be slower than the first.
    """

    order: ClassVar[int]
    is_fallback: ClassVar[bool] = False

    def prepare(self, call: AnyCall) -> Prepared | None:
        """The computation of a call as a function to run; `None` if this implementation cannot be used.

        This may compile code, or copy weights.
        """
        raise NotImplementedError

    def suits(self, call: AnyCall) -> bool:
        """Whether it is expected to be faster than those before it, so that `backend="auto"` uses it if it can.

        The answer must follow from the call alone, and must not depend on what was computed before.
        """
        return True


class Operation(Registry[Implementation[AnyCall]]):
    """The implementations of one operation by name.

    Args:
        kind (`str`): The operation, for messages.
        package (`str`, *optional*): Dotted name of the package whose modules register the implementations.
    """

    def __init__(self, kind: str, package: str | None = None):
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

    def run(self, call: AnyCall, backend: str) -> torch.Tensor | None:
        """Compute a call.

        Args:
            call: The arguments.
            backend (`str`): `"reference"`, `"fast"` or `"auto"`.

        Returns:
            `torch.Tensor`: The result; `None` if no implementation can be used.
        """
        if backend != "reference":
            for _, implementation in reversed(self._ordered or self.ordered):
                wanted = implementation.suits(call) if backend == "auto" else not implementation.is_fallback
                prepared = implementation.prepare(call) if wanted else None
                if prepared is not None:
                    return prepared()
        for _, implementation in self._ordered or self.ordered:
            prepared = implementation.prepare(call)
            if prepared is not None:
                return prepared()
        return None
