# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The programs of policies, and whether a step of a policy can run as one."""

import threading
import weakref
from typing import Any

import torch
from torch import nn

from ..kernels.cpu.compilation import loads
from ..kernels.cpu.watched import WatchedModules
from .budget_prior import BudgetPrior
from .compiled import PolicyProgram
from .short_weights import ShortWeights, products_of


KERNELS = ("numba_program", "numba_step", "numba_linear", "numba_policy", "numba_decision")
MOST_ROWS = 32
"""Most rows of a program; with more, torch's products are as fast."""
PLAIN = (nn.Linear, nn.LayerNorm, nn.GELU, nn.Embedding, nn.Sequential, nn.ModuleList)

_PROGRAMS = threading.local()
"""The programs of this thread, by policy and number of rows."""


class PolicyPrograms:
    """The programs of one policy in one thread."""

    def __init__(self, policy: Any):
        self._modules = WatchedModules(policy)
        self._weights = list(policy.parameters())
        self._addresses: list[int] = []
        self._read: list[torch.Tensor] = []
        """The weights at these addresses: their memory is not freed while programs refer to it."""
        self._can_compile = all(map(loads, KERNELS)) and _is_known(policy)
        self._by_rows: dict[int, PolicyProgram] = {}
        self._short = ShortWeights()

    def are_current(self) -> bool:
        """Whether the policy still has the same modules."""
        return self._modules.are_current()

    def known(self, rows: int) -> PolicyProgram | None:
        """The program for a number of rows as it was before, if no hook was added to any model since."""
        return self._by_rows.get(rows) if self._modules.has_no_new_hooks() and not self._needs_modules() else None

    def of(self, policy: Any, rows: int, is_call: bool) -> PolicyProgram | None:
        """The program for a number of rows; `None` if the modules have to run."""
        if not self._can_compile or self._needs_modules() or not self._modules.are_plain():
            return None
        addresses = [weight.data_ptr() for weight in self._weights]
        if addresses != self._addresses or not self._short.are_current(is_call):
            self._short = ShortWeights()
            self._by_rows, self._addresses, self._read = {}, addresses, [x.detach() for x in self._weights]
            if not all(map(_is_readable, self._weights)):
                self._addresses = []
                return None
        if rows not in self._by_rows:
            self._by_rows[rows] = PolicyProgram(policy, rows, self._short)
        return self._by_rows[rows]

    def _needs_modules(self) -> bool:
        grad = torch.is_grad_enabled() and any(weight.requires_grad for weight in self._weights)
        return grad or torch.is_autocast_enabled("cpu")


def program_of(policy: Any, rows: int, is_new: bool = True, is_call: bool = True) -> PolicyProgram | None:
    """The program of a policy for this thread; `None` if its modules have to run.

    Args:
        policy (`nn.Module`): A [`SOLPolicyModel`].
        rows (`int`): Rows of a step.
        is_new (`bool`, *optional*, defaults to `True`): Whether to look for modules and weights that were replaced;
            hooks are always looked for.
        is_call (`bool`, *optional*, defaults to `True`): Whether to compare numbers of weights that were copied.
    """
    if not 0 < rows <= MOST_ROWS:
        return None
    known = getattr(_PROGRAMS, "known", None)
    if known is None:
        known = _PROGRAMS.known = weakref.WeakKeyDictionary()
    programs = known.get(policy)
    if programs is not None and not is_new:
        program = programs.known(rows)
        if program is not None:
            return program
    if programs is None or not programs.are_current():
        programs = known[policy] = PolicyPrograms(policy)
    return programs.of(policy, rows, is_call)


def _is_readable(weight: torch.Tensor) -> bool:
    return weight.dtype == torch.float32 and weight.device.type == "cpu" and weight.is_contiguous()


def _is_known(policy: Any) -> bool:
    """Whether the modules of a policy are of known classes, and of sizes that compiled code can compute."""
    from ..kernels.cpu.numba_vectors import LANES

    own = [x for x in policy.modules() if type(x) not in PLAIN]
    known = all(type(x).__module__ in (type(policy).__module__, BudgetPrior.__module__) for x in own)
    return known and all(x.in_features % LANES == 0 for x in products_of(policy))
