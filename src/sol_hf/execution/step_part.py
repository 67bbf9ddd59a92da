# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Base class of objects that replace a module's forward while a generation runs."""

from collections.abc import Callable, Sequence
from typing import ClassVar

from torch import nn


class StepPart:
    """The forward of one module during decode steps; a subclass has `__call__`.

    Args:
        module (`nn.Module`): The module.

    Class attributes:
        wraps_other_forwards (`bool`): What to do if the module's forward was replaced by another library, as
            accelerate does for offloading. If true, this forward replaces that one and calls it; otherwise the module
            is left unchanged.
    """

    wraps_other_forwards = False
    change_name: ClassVar[str] = "forward"
    """Kind of the change that installs it, see [`Change`]."""

    def __init__(self, module: nn.Module):
        self.module = module
        self.own: Callable | None = None
        """The module's own forward, while this one is installed."""
        self._replaced: Callable | None = None

    def __reduce__(self) -> str:
        raise TypeError("A base cannot be copied or pickled during a generation: do it before or after.")

    @property
    def nbytes(self) -> int:
        """Bytes of the copies of weights that were made."""
        return 0

    @property
    def copies(self) -> Sequence[object]:
        """The copies of weights that were made; another object after each change."""
        return ()

    def drop_copies(self) -> None:
        """Free the copies of weights; they are made again when they are needed."""

    def install(self) -> Callable[[], None]:
        """Replace the module's forward.

        Returns:
            `Callable`: [`StepPart.remove`].
        """
        replaced = vars(self.module).get("forward")
        if replaced is None or self.wraps_other_forwards:
            self.own, self._replaced = self.module.forward, replaced
            vars(self.module)["forward"] = self
        return self.remove

    def remove(self) -> None:
        """Undo [`install`]. Nothing happens if another forward is installed."""
        if vars(self.module).get("forward") is self:
            del self.module.forward
            if self._replaced is not None:
                vars(self.module)["forward"] = self._replaced
            self._replaced = None
