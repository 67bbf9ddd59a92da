# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Mistakes that a call must refuse before it computes anything, and how the message says so."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from fuzz.case import DENSE, Case
from fuzz.controllers import FAULTS, NEEDS_BUDGET
from sol_hf import SOLForCausalLM
from sol_hf.selection.nested_planes import width_read


@dataclass(frozen=True)
class Mistake:
    """A wrong argument.

    Args:
        arguments (`Callable`): The wrong arguments, for a case and its model.
        message (`str`): Part of the error's message, in lower case.
        without_budget (`bool`): Whether it is refused without a budget, too.
    """

    arguments: Callable[[Case, SOLForCausalLM], dict[str, Any]]
    message: str
    without_budget: bool = False


MISTAKES: dict[str, Mistake] = {
    "no cache": Mistake(lambda case, model: {"use_cache": False}, "cache"),
    "static cache": Mistake(lambda case, model: {"cache_implementation": "static"}, "cache"),
    "paged cache": Mistake(lambda case, model: {"cache_implementation": "paged"}, "continuous batching", True),
    "other cache": Mistake(lambda case, model: {"past_key_values": DynamicCache()}, "solcache"),
    "looked up": Mistake(lambda case, model: {"prompt_lookup_num_tokens": 2}, "cannot run under a budget"),
    "misspelt": Mistake(lambda case, model: {"mlp_keeep": 0.5}, "did you mean `mlp_keep`", True),
    "unknown mode": Mistake(lambda case, model: {"budget_mode": "firm"}, "`budget_mode` must be one of", True),
    "unknown horizon": Mistake(lambda case, model: {"budget_horizon": "day"}, "`budget_horizon` must be one of", True),
    "unknown backend": Mistake(lambda case, model: {"backend": "quick"}, "`backend` must be one of", True),
    "cold": Mistake(lambda case, model: {"action_temperature": 0.0}, "`action_temperature` must be positive", True),
    "graphs": Mistake(lambda case, model: {"cuda_graphs": True}, "cuda_graphs"),
    "short mask": Mistake(lambda case, model: {"attention_mask": torch.ones(case.rows, 1)}, "`attention_mask`"),
}
"""Mistakes by name, for the last call of a case."""


def expected(case: Case) -> Iterator[str]:
    """Parts of the messages of which one must be in the error; none if the case has to run."""
    has_controller, has_budget = case.controller != "policy", bool(case.budget)
    for name, value in case.budget.items():
        least = min(case.levels[name])
        if name == "bits" and case.options.get("bits_backend") == "nested":
            least = width_read(least) or DENSE[name]
        if min(value if isinstance(value, list) else [value]) < least:
            yield "the smallest level"
        if isinstance(value, list) and len(value) != case.rows:
            yield "rows, but the input has"
    if has_budget:
        for name, levels in case.levels.items():
            if name not in case.budget and max(levels) != DENSE[name]:
                yield "is not set, so it would stay dense"
    if case.options.get("exact") and not (case.is_hard and not case.keeps_episodes):
        yield "leave out `exact`"
    if has_controller and not has_budget and case.controller in NEEDS_BUDGET:
        yield "needs a budget"
    if case.controller in FAULTS and not case.is_dense:
        yield FAULTS[case.controller]
    if case.processor is not None and not has_budget and not has_controller:
        yield "`action_processors` have nothing to act on"
    int8 = case.options.get("bits_backend") == "int8" and min(case.levels["bits"]) < DENSE["bits"]
    if int8 and case.family == "gpt2" and not case.is_dense and (not has_budget or "bits" in case.budget):
        yield "`bits_backend='int8'` needs mlps of"
    if case.wrong is not None and (not case.runs_base or MISTAKES[case.wrong].without_budget):
        yield MISTAKES[case.wrong].message
