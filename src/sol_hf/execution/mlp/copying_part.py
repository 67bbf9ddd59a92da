# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Base class of the parts of an MLP that run in a decode step and may hold copies of weights."""

import threading
import weakref
from collections.abc import Callable
from typing import Any, Protocol, Self, TypeVar

from torch import nn

from ..step_part import StepPart


class WeightCopy(Protocol):
    """A copy of a module's weights, or their view in another layout."""

    @classmethod
    def of(cls, module: Any) -> Self | None:
        """The copy for a module; `None` if it is of a kind that cannot be copied."""

    @property
    def nbytes(self) -> int:
        """Memory of the copy."""

    def still_fits(self, module: Any) -> bool:
        """Whether a module still has the weights that were copied."""


Copy = TypeVar("Copy", bound=WeightCopy)

_PARTS: "weakref.WeakValueDictionary[tuple[type, int], CopyingPart]" = weakref.WeakValueDictionary()
"""By class and the id of the module. A part holds a reference to its module, so that the id stays valid."""
_REGISTRY_LOCK = threading.Lock()


class CopyingPart(StepPart):
    """The forward of one module while a generation runs, with copies of its weights in other layouts.

    Args:
        module (`nn.Module`): The module.
    """

    wraps_other_forwards = True

    def __init__(self, module: nn.Module):
        super().__init__(module)
        self.weights = sum(parameter.numel() for parameter in module.parameters())
        """Number of its weights, on which the fastest implementation depends."""
        self._copies: dict[type[WeightCopy], WeightCopy | None] = {}
        self._lock = threading.Lock()

    @classmethod
    def of(cls, module: nn.Module) -> Self:
        """The part of a module. Bases that share the module also share this object and the copies of weights."""
        with _REGISTRY_LOCK:
            part = _PARTS.get((cls, id(module)))
            if part is None:
                part = _PARTS[cls, id(module)] = cls(module)
            return part  # type: ignore[return-value]

    @property
    def nbytes(self) -> int:
        return sum(copy.nbytes for copy in self.copies)

    def drop_copies(self) -> None:
        with self._lock:
            self._copies = {}

    def install(self) -> Callable[[], None]:
        """Replace the module's forward, and drop copies of weights that have changed since.

        Returns:
            `Callable`: [`StepPart.remove`].
        """
        with self._lock:
            copies = self._copies.items()
            self._copies = {kind: copy for kind, copy in copies if copy is not None and copy.still_fits(self.module)}
        return super().install()

    def copy_of(self, kind: type[Copy]) -> Copy | None:
        """The copy of a kind, made now if there is none; `None` if the module is not of a known kind."""
        with self._lock:
            if kind not in self._copies:
                self._copies[kind] = None if self.computes_something_else() else kind.of(self.module)
            return self._copies[kind]  # type: ignore[return-value]

    @property
    def copies(self) -> list[WeightCopy]:
        """All copies that were made."""
        return [copy for copy in list(self._copies.values()) if copy is not None]

    def made_copy(self, kind: type[Copy]) -> Copy | None:
        """The copy of a kind, if there is one."""
        return self._copies.get(kind)  # type: ignore[return-value]

    def computes_something_else(self) -> bool:
        """Whether another library has replaced the module's forward, before or after this part did."""
        return self._replaced is not None or vars(self.module).get("forward", self) is not self
