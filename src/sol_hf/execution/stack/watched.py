# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Notices what has changed in a base since its structure was found, fast enough to ask before every step.

Going through the modules of a base takes as long as some of its layers. Here the dictionaries in which modules keep
their children, parameters and hooks are listed once, and compared with what was in them.
"""

from collections.abc import Mapping

from torch import nn
from torch.nn.modules import module as all_modules

from ..lm_head import capture_hidden_state
from ..step_part import StepPart


class WatchedModules:
    """The modules of a base as they were.

    Dictionaries refer to no module but those that are in them, so the base can be freed.

    Args:
        base (`nn.Module`): The base.
    """

    def __init__(self, base: nn.Module):
        modules = list(base.modules())
        held: list[Mapping[str, object]] = [part for m in modules for part in (m._modules, m._parameters) if part]
        self._held = [(now, list(now.values())) for now in held]
        self._own = [(vars(m), m._forward_hooks, m._forward_pre_hooks) for m in modules]

    def are_current(self) -> bool:
        """Whether the base still consists of the same modules and parameters."""
        for now, known in self._held:
            if len(now) != len(known) or any(a is not b for a, b in zip(now.values(), known, strict=True)):
                return False
        return True

    def are_plain(self) -> bool:
        """Whether no module has hooks, or a forward that another library has replaced."""
        if all_modules._global_forward_hooks or all_modules._global_forward_pre_hooks:
            return False
        for own, after, before in self._own:
            if after or (before and any(hook is not capture_hidden_state for hook in before.values())):
                return False
            forward = own.get("forward")
            if forward is not None and not isinstance(forward, StepPart):
                return False
        return True
