# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Controllers and processors of the cases by name, hostile ones among them."""

from collections.abc import Callable

import torch

from sol_hf import (
    Controller,
    DriftController,
    EntropyController,
    FixedController,
    RandomController,
    SOLForCausalLM,
)
from sol_hf.controllers.base import Observation
from sol_hf.controllers.processors import ActionProcessor, AxisBiasProcessor


class Wish(Controller):
    """Scores actions by a rule, whatever the budget is.

    Args:
        rule (`Callable`): Of the costs `(n_actions,)` and the observation; returns scores `(rows, n_actions)` or
            `(n_actions,)`.
    """

    needs_budget = False

    def __init__(self, rule: Callable[[torch.Tensor, Observation], torch.Tensor]):
        self.rule = rule

    def __call__(self, observation: Observation) -> torch.Tensor:
        costs = observation.action_space.ratios.sum(dim=-1)
        return self.rule(costs, observation).expand(observation.rows, -1)


class Meddler(Controller):
    """Wants the dearest action, and sets targets and sums such that nothing seems to forbid it."""

    def __call__(self, observation: Observation) -> torch.Tensor:
        observation.require_targets().fill_(1.0)
        observation.ledger.episode_sums.zero_()
        return observation.action_space.ratios.sum(dim=-1).expand(observation.rows, -1)


def noise(costs: torch.Tensor, observation: Observation) -> torch.Tensor:
    """Other random scores at every step."""
    return 50 * torch.randn(observation.rows, len(costs))


def sign(wants_more: bool) -> float:
    """1 for the dearest action, -1 for the cheapest."""
    return 1.0 if wants_more else -1.0


CONTROLLERS: dict[str, Callable[[SOLForCausalLM, int], Controller | None]] = {
    "policy": lambda model, seed: None,
    "fixed": lambda model, seed: FixedController(),
    "fixed by row": lambda model, seed: FixedController(across_rows=False),
    "random": lambda model, seed: RandomController(seed),
    "entropy": lambda model, seed: EntropyController(mix=0.7, gain=2.0),
    "drift": lambda model, seed: DriftController(gain=2.0),
    "dearest": lambda model, seed: Wish(lambda costs, seen: costs),
    "cheapest": lambda model, seed: Wish(lambda costs, seen: -costs),
    "by turns": lambda model, seed: Wish(lambda costs, seen: costs * sign(seen.step % 2 == 1)),
    "late": lambda model, seed: Wish(lambda costs, seen: costs * sign(2 * seen.step >= seen.episode_length)),
    "noise": lambda model, seed: Wish(noise),
    "infinite": lambda model, seed: Wish(lambda costs, seen: torch.full_like(costs, torch.inf)),
    "minus infinite": lambda model, seed: Wish(lambda costs, seen: torch.full_like(costs, -torch.inf)),
    "not a number": lambda model, seed: Wish(lambda costs, seen: costs.masked_fill(costs == costs.max(), torch.nan)),
    "wrong shape": lambda model, seed: Wish(lambda costs, seen: costs[:-1, None].T),
    "meddler": lambda model, seed: Meddler(),
}
"""Controllers by name, made for a model and a seed; `None` is the policy of the model."""

NEEDS_BUDGET = ("policy", "fixed", "fixed by row", "random", "entropy", "drift", "meddler")
"""Controllers that are refused without a budget; `policy` stands for no controller, so that all is dense."""

FAULTS = {"not a number": "not a number", "wrong shape": "returned scores of shape"}
"""Controllers that are refused as soon as they are asked, and how the message says so."""

ROWS_MATTER = ("fixed", "random", "noise")
"""Controllers whose choice for a row depends on the other rows."""


class Forbid(ActionProcessor):
    """Rules out every action, or all but the dearest."""

    def __init__(self, dearest: bool):
        self.dearest = dearest

    def __call__(self, action_ids, scores, observation):
        costs = observation.action_space.ratios.sum(dim=-1)
        allowed = (costs == costs.max()) & self.dearest
        return scores.masked_fill(~allowed, float("-inf"))


PROCESSORS: dict[str, Callable[[], ActionProcessor]] = {
    "nothing": lambda: Forbid(dearest=False),
    "the dearest": lambda: Forbid(dearest=True),
    "bias": lambda: AxisBiasProcessor(token_keep=-30.0, bits=-30.0),
}
"""Processors by what they leave."""
