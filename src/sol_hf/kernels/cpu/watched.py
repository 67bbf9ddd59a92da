# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Notices what has changed in a model since a program was made for it, fast enough to ask before every step.

Going through the modules of a model takes as long as some of its layers. Here the dictionaries in which modules keep
their children, parameters and hooks are listed once, and compared with what was in them, in loops that Python's
interpreter does not run.
"""

import operator
from collections.abc import Callable, Mapping
from itertools import chain, repeat

from torch import nn
from torch.nn.modules import module as all_modules
from torch.utils.hooks import RemovableHandle


class WatchedModules:
    """The modules of a model as they were.

    Dictionaries refer to no module but those that are in them, so the model can be freed.

    Args:
        model (`nn.Module`): The model.
        own_forwards (`type`, *optional*): Forwards of this class are not those of another library.
        own_hook (`Callable`, *optional*): A forward pre-hook that is not one of another library.
    """

    def __init__(self, model: nn.Module, own_forwards: type | None = None, own_hook: Callable | None = None):
        modules, self._own_forwards, self._own_hook = list(model.modules()), own_forwards, own_hook
        held: list[Mapping[str, object]] = [part for m in modules for part in (m._modules, m._parameters) if part]
        self._held = [now.values() for now in held]
        self._then, self._numbers = list(chain.from_iterable(self._held)), list(map(len, held))
        self._after = [m._forward_hooks for m in modules]
        self._before = [m._forward_pre_hooks for m in modules]
        self._own = [vars(m) for m in modules]
        self._forwards: list[object] = []
        """Forwards of modules that are our own."""
        self._hooks_made = -1
        """Hooks that torch had made, of all models, when there were none that matter here."""

    def has_no_new_hooks(self) -> bool:
        """Whether no hook was added to any model of this process since [`WatchedModules.are_plain`] was true."""
        return RemovableHandle.next_id == self._hooks_made

    def are_current(self) -> bool:
        """Whether the model still consists of the same modules and parameters."""
        now = list(chain.from_iterable(self._held))
        return list(map(len, self._held)) == self._numbers and all(map(operator.is_, now, self._then))

    def are_plain(self) -> bool:
        """Whether no module has hooks, or a forward that another library has replaced."""
        hooks_made = RemovableHandle.next_id
        if all_modules._global_forward_hooks or all_modules._global_forward_pre_hooks or any(self._after):
            return False
        if any(hook is not self._own_hook for hooks in filter(None, self._before) for hook in hooks.values()):
            return False
        forwards = list(map(dict.get, self._own, repeat("forward")))
        if len(forwards) != len(self._forwards) or not all(map(operator.is_, forwards, self._forwards)):
            if not all(forward is None or self._is_own(forward) for forward in forwards):
                return False
            self._forwards = forwards
        self._hooks_made = hooks_made
        return True

    def _is_own(self, forward: object) -> bool:
        return self._own_forwards is not None and isinstance(forward, self._own_forwards)
