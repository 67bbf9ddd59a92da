# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What the axes address on a base, as it is now: its modules, its executors, its LM head.

A base can be changed between two calls: adapters are added, layers are copied or replaced, embeddings are resized. An
[`Inventory`] therefore knows the modules and configs from which it was made, and is made anew if they have changed.
"""

import weakref
from collections.abc import Iterator

from torch import nn
from transformers import PreTrainedModel

from ..errors import UnsupportedAxisError
from .cache_support import reason_against_cache
from .executors import EXECUTORS, AxisExecutor
from .lm_head import lm_head_of
from .step_part import StepPart


class Inventory:
    """The executors of a base and its LM head.

    Args:
        base (`PreTrainedModel`): The base. It is not kept alive, nor are modules that are taken out of it.

    Raises:
        UnsupportedAxisError: if the base has no LM head.
    """

    def __init__(self, base: PreTrainedModel):
        self._base = weakref.ref(base)
        self.head = lm_head_of(base)
        self._modules = [weakref.ref(module) for module in base.modules()]
        self._settings = [_settings(module) for module in base.modules()]
        self._no_cache = reason_against_cache(base)
        self._executors: dict[str, AxisExecutor] = {}
        self._reasons: dict[str, str] = {}

    @property
    def base(self) -> PreTrainedModel:
        """The base."""
        base = self._base()
        assert base is not None, "an inventory is only used while its base exists"
        return base

    def is_current(self) -> bool:
        """Whether the base still consists of the same modules, with the same configs and attention."""
        now = list(self.base.modules())
        if self.base.get_output_embeddings() is not self.head or len(now) != len(self._modules):
            return False
        if any(known() is not module for known, module in zip(self._modules, now, strict=True)):
            return False
        settings = zip(self._settings, map(_settings, now), strict=True)
        return all(known[0] is found[0] and known[1] == found[1] for known, found in settings)

    def executor(self, axis: str) -> AxisExecutor:
        """The executor of an axis on this base.

        Raises:
            UnsupportedAxisError: if the axis has none, or cannot be controlled on this base.
        """
        reason = self._reason_against(axis)
        if reason is not None:
            raise UnsupportedAxisError(reason)
        return self._executors[axis]

    def unsupported(self, axis: str) -> UnsupportedAxisError | None:
        """The reason why an axis cannot be controlled on this base, `None` if it can."""
        reason = self._reason_against(axis)
        return None if reason is None else UnsupportedAxisError(reason)

    def _reason_against(self, axis: str) -> str | None:
        """Message of the error for an axis that cannot be controlled.

        Only the message is kept. An error keeps the frames that it has passed, and with them the base.
        """
        if axis not in EXECUTORS:  # one may be registered later
            return f"The axis `{axis}` has no executor: register one with `register_executor`."
        if self._no_cache is not None:
            return f"The axis `{axis}` cannot be controlled: {self._no_cache}."
        if axis not in self._executors and axis not in self._reasons:
            try:
                self._executors[axis] = EXECUTORS[axis](self.base)
            except UnsupportedAxisError as error:
                self._reasons[axis] = str(error)
        return self._reasons.get(axis)

    def executors(self) -> Iterator[AxisExecutor]:
        """Executors of all axes that can be controlled on this base."""
        return (self.executor(axis) for axis in EXECUTORS if self.unsupported(axis) is None)

    @property
    def step_parts(self) -> list[StepPart]:
        """The parts that replace a module's forward, each once, also if it carries out several axes."""
        parts = [part for executor in self.executors() for part in executor.step_parts]
        return list({id(part): part for part in parts}.values())


def _settings(module: nn.Module) -> tuple[object, object]:
    """The config of a module, and the attention implementation in it."""
    config = vars(module).get("config")
    return config, getattr(config, "_attn_implementation_internal", None)
