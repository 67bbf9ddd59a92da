# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The processors that keep a budget, over every episode or over the whole generation."""

from collections.abc import Sequence

import numpy as np
import torch

from ..budget.action_space import ActionSpace
from ..budget.bank import TOLERANCE, Bank
from .action_processor import ActionProcessor, restrict
from .base import Observation


def within(bounds: Sequence[torch.Tensor], space: ActionSpace) -> torch.Tensor:
    """The actions whose level of every axis lies within bounds.

    Args:
        bounds (two `torch.Tensor` of shape `(..., axes)`): The smallest and the largest level, in ratio units.
        space ([`ActionSpace`]): The actions.

    Returns:
        `torch.BoolTensor` of shape `(..., n_actions)`.
    """
    least, most = bounds
    if most.device.type == "cpu":
        return torch.from_numpy(_within(least.numpy(), most.numpy(), space))
    return _within_on_device(least, most, space)


def _within_on_device(least: torch.Tensor, most: torch.Tensor, space: ActionSpace) -> torch.Tensor:
    ratios = space.ratios_on(most.device)
    allowed = (ratios <= most[..., None, :] + TOLERANCE) & (ratios >= least[..., None, :] - TOLERANCE)
    return allowed.all(dim=-1)


def _within(least: np.ndarray, most: np.ndarray, space: ActionSpace) -> np.ndarray:
    """The same by numpy, level by level: the actions are all combinations of levels."""
    least, most = least - np.float32(TOLERANCE), most + np.float32(TOLERANCE)
    allowed = np.ones((*most.shape[:-1], 1), dtype=bool)
    for axis, levels in enumerate(space.level_ratios):
        fits = (levels <= most[..., axis, None]) & (levels >= least[..., axis, None])
        allowed = (allowed[..., :, None] & fits[..., None, :]).reshape(*most.shape[:-1], -1)
    return allowed


class HardBudgetProcessor(ActionProcessor):
    """Rules out every action after which the budget of the episode could not be kept.

    With `n` controllable steps done and this one chosen, on every axis
      - the sum stays at most `target * n + (largest level - target)`: the running mean overshoots by one step at most;
      - the cheapest way to finish the episode still ends at a mean of at most `target`.
    The cheapest action is always allowed, since a target is never below the smallest level. An axis whose target is
    its largest level (or above) stays there: a target of 1.0 gives 1.0 in every step. So does an axis that the step
    holds; such steps count neither as done nor in the sum.
    """

    def __call__(self, action_ids: torch.Tensor, scores: torch.Tensor, observation: Observation) -> torch.Tensor:
        return restrict(scores, within(self.bounds(observation), observation.action_space))

    def bounds(self, observation: Observation) -> tuple[torch.Tensor, torch.Tensor]:
        """The smallest and the largest level that every axis may take, in ratio units, `(rows, axes)` each."""
        targets = self.targets(observation)
        ratios = observation.action_space.ratios_on(targets.device)
        cheapest, largest = ratios.amin(0), ratios.amax(0)
        held = targets >= largest - TOLERANCE
        held = held if observation.held is None else held | observation.held
        most = torch.where(held, largest, torch.maximum(self.most(observation), cheapest))
        return torch.where(held, largest, cheapest), most

    def targets(self, observation: Observation) -> torch.Tensor:
        """The budget that is kept, in ratio units, `(rows, axes)`."""
        return observation.require_targets()

    def most(self, observation: Observation) -> torch.Tensor:
        """The largest level that the budget allows, in ratio units, `(rows, axes)`; it may be below the smallest."""
        targets, ledger = self.targets(observation), observation.ledger
        ratios = observation.action_space.ratios_on(targets.device)
        cheapest, largest = ratios.amin(0), ratios.amax(0)
        spent, done = ledger.episode_sums, ledger.budgeted_counts()
        left = observation.remaining[:, None]
        goal = torch.minimum(targets, largest)
        running = goal * done + largest - spent
        final = goal * (done + left) - spent - (left - 1) * cheapest
        return torch.minimum(running, final)


class GenerationBudgetProcessor(HardBudgetProcessor):
    """Rules out every action that the [`Bank`] of the call cannot pay for.

    After `N` controllable steps of a call the mean of every axis is at most `target + (largest level - target) / N`.
    Within the call, episodes may spend what earlier ones have saved. All else is as in [`HardBudgetProcessor`].

    Args:
        exact (`bool`, *optional*, defaults to `False`): Also rule out every action after which the mean over all steps
            of the call, whose number is known, could not end at or below the target.
    """

    def __init__(self, exact: bool = False):
        self.exact = exact

    def targets(self, observation: Observation) -> torch.Tensor:
        return self._bank(observation).targets

    def most(self, observation: Observation) -> torch.Tensor:
        bank = self._bank(observation)
        if not self.exact:
            return bank.most()
        if observation.remaining_in_call is None:
            raise ValueError("How many steps the call has is unknown, which `exact` needs: pass `max_new_tokens`.")
        return torch.minimum(bank.most(), bank.most_to_end(observation.remaining_in_call))

    def _bank(self, observation: Observation) -> Bank:
        if observation.ledger.bank is None:
            observation.require_targets()
            raise ValueError(
                "A budget over a generation needs a bank, which `generate` and `score` open: in a loop of your own, "
                "set `ledger.bank = Bank.opened(targets, action_space)` before the first step."
            )
        return observation.ledger.bank
