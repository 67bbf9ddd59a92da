# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What takes the place of a module's forward while its base is instrumented."""

from collections.abc import Callable

from torch import nn


class StepPart:
    """A forward for one module, faster on decode steps; a subclass has `__call__`.

    Args:
        module (`nn.Module`): The module.
    """

    def __init__(self, module: nn.Module):
        self.module = module

    def __reduce__(self) -> str:
        raise TypeError("A base cannot be copied or pickled during a generation: do it before or after.")

    def install(self) -> Callable[[], None]:
        """Take the place of the module's forward, unless it was replaced already.

        Returns:
            `Callable`: [`StepPart.remove`].
        """
        vars(self.module).setdefault("forward", self)
        return self.remove

    def remove(self) -> None:
        """Undo [`install`]."""
        if vars(self.module).get("forward") is self:
            del self.module.forward
