# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Cases of several tests: actions, budgets, controllers, and the model that they control."""

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from sol_hf import (
    Controller,
    DriftController,
    EntropyController,
    FixedController,
    PolicyController,
    RandomController,
    ScheduleController,
    SOLConfig,
    SOLForCausalLM,
)
from sol_hf.budget.axes import PUBLISHED_AXES
from support.bases import tiny_base


AXES = tuple(axis.name for axis in PUBLISHED_AXES)
DENSE = tuple(axis.dense for axis in PUBLISHED_AXES)
LEVELS: dict[str, list] = {"token_keep": [0.2, 0.6, 1.0], "mlp_keep": [0.4, 0.7, 1.0], "bits": [3, 8, 16]}
SETTINGS: dict = {
    **LEVELS,
    "policy_hidden_size": 32,
    "policy_num_heads": 2,
    "episode_length": 6,
    "page_size": 4,
}
FIRST_CONTROLLABLE = 4 + 2 + 2
"""Keys that the first controllable step sees, with the default sink and window."""

ACTIONS: dict[str, tuple[float, float, int]] = {
    "dense": (1.0, 1.0, 16),
    "token_keep": (0.2, 1.0, 16),
    "mlp_keep": (1.0, 0.4, 16),
    "bits": (1.0, 1.0, 3),
    "joint": (0.6, 0.7, 8),
    "cheapest": (0.2, 0.4, 3),
}

BUDGETS: dict[str, dict] = {
    "half": {"token_keep": 0.5, "mlp_keep": 0.5, "bits": 8},
    "token_keep": {"token_keep": 0.3},
    "mlp_keep": {"mlp_keep": 0.6},
    "bits": {"bits": 5},
    "smallest": {"token_keep": 0.2, "mlp_keep": 0.4, "bits": 3},
    "rows": {"token_keep": [0.3, 0.9], "bits": [12, 4]},
}
DENSE_BUDGETS: dict[str, dict] = {"none": {}, "dense": {"token_keep": 1.0, "mlp_keep": 1.0, "bits": 16}}
HALF = BUDGETS["half"]

CONTROLLERS: dict[str, Callable[[SOLForCausalLM], Controller]] = {
    "policy": lambda model: PolicyController(model.policy),
    "fixed": lambda model: FixedController(),
    "random": lambda model: RandomController(seed=3),
    "entropy": lambda model: EntropyController(mix=0.7),
    "drift": lambda model: DriftController(),
    "schedule": lambda model: ScheduleController(mixed_schedule(model, steps=24, rows=1)),
}


def control(base: PreTrainedModel, **settings) -> SOLForCausalLM:
    """Put a small fresh policy on a base, in float64 so that its choices do not depend on the batch."""
    torch.manual_seed(3)
    model = SOLForCausalLM.from_base(base, SOLConfig(**{**SETTINGS, **settings}))
    model.policy.double()
    return model


def sol_model(family: str = "llama", dtype: torch.dtype = torch.float64, **overrides) -> SOLForCausalLM:
    """A tiny base of a family under a small fresh policy; `overrides` are for the base's config."""
    return control(tiny_base(family, dtype, **overrides))


def prompts(rows: int = 2, length: int = 20, seed: int = 1) -> torch.Tensor:
    """Random token ids `(rows, length)` that are neither padding nor special."""
    return torch.randint(3, 99, (rows, length), generator=torch.Generator().manual_seed(seed))


def left_padded(rows: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask` of rows of any length, padded on the left."""
    width = max(len(row) for row in rows)
    ids = torch.stack([torch.cat([row.new_zeros(width - len(row)), row]) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": (torch.arange(width) >= width - lengths[:, None]).long()}


def constant_schedule(model: SOLForCausalLM, action: str, steps: int) -> torch.Tensor:
    """The named action at every step, `(steps, 1)`."""
    return torch.full((steps, 1), model.action_space.index(*ACTIONS[action]))


def mixed_schedule(model: SOLForCausalLM, steps: int, rows: int, seed: int = 5) -> torch.Tensor:
    """Random actions `(steps, rows)`."""
    return torch.randint(len(model.action_space), (steps, rows), generator=torch.Generator().manual_seed(seed))


def assert_budget_kept(
    model: SOLForCausalLM, actions: torch.Tensor, lengths: list[int], budget_horizon: str = "generation", **budget
) -> None:
    """Check actions `(rows, steps)`, -1 where there is none, after prompts of `lengths` tokens, against a hard budget.

    Over the controllable steps of a call, or of every episode, the running mean of an axis may exceed its target by
    one step's excess, and the mean of a whole episode not at all if the budget is kept over episodes.
    """
    is_by_episode = budget_horizon == "episode"
    space, episode = model.action_space, model.config.episode_length if is_by_episode else actions.shape[1]
    for row, (line, length) in enumerate(zip(actions.tolist(), lengths, strict=True)):
        for begin in range(0, len(line), episode):
            steps = [
                space.table[action]
                for place, action in enumerate(line[begin : begin + episode], start=begin)
                if action >= 0 and length + place >= FIRST_CONTROLLABLE
            ]
            whole = is_by_episode and length + begin >= FIRST_CONTROLLABLE and len(steps) == episode
            for column, (axis, levels) in enumerate(space.levels.items()):
                target = budget.get(axis, max(levels))
                target = target[row] if isinstance(target, list) else target
                values = [step[column] for step in steps]
                for n in range(1, len(values) + 1):
                    assert sum(values[:n]) <= target * n + (max(levels) - target) + 1e-3, (axis, row, begin, values)
                assert not whole or sum(values) <= target * episode + 1e-3, (axis, row, begin, values)
