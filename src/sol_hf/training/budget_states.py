# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Episodes under a budget that is kept as `generate` keeps it, for episodes that no base has run.

A policy is fitted to what it sees in `generate`. In the default mode this depends on the [`Bank`] of the call: what an
episode is asked to spend, and the largest level that a step may take. [`BudgetStates`] draws banks as episodes of long
texts begin with, and walks through an episode as a decode step does, with the processors of `generate`.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from ..budget.action_space import ActionSpace
from ..budget.bank import TOLERANCE, Bank
from ..budget.ledger import BudgetLedger
from ..controllers.base import Observation
from ..controllers.hard_budget import HardBudgetProcessor
from ..controllers.processors import ActionProcessorList, budget_processors
from ..episodes.block_runner import left_dense


class Begin(NamedTuple):
    """How episodes begin.

    Args:
        targets (`torch.Tensor` of shape `(episodes, axes)`): Budgets in ratio units.
        bank ([`Bank`], *optional*): Of budgets that are kept over the generation.
    """

    targets: torch.Tensor
    bank: Bank | None

    @property
    def asked(self) -> torch.Tensor:
        """What the episodes are asked to spend, `(episodes, axes)` in ratio units."""
        return self.targets if self.bank is None else self.bank.asked

    @property
    def balance(self) -> torch.Tensor | None:
        """What the banks have, `(episodes, axes)` in ratio units."""
        return None if self.bank is None else self.bank.balance


class History(NamedTuple):
    """What a policy sees of an episode, besides the text.

    Args:
        scalars (`torch.Tensor` of shape `(episodes, steps, scalars)`): See [`Observation.scalars`].
        previous_actions (`torch.LongTensor` of shape `(episodes, steps)`): Action of the step before.
        bounds (`torch.Tensor` of shape `(episodes, steps, 2, axes)`, *optional*): The smallest and the largest level
            that a hard budget allows, in ratio units.
    """

    scalars: torch.Tensor
    previous_actions: torch.Tensor
    bounds: torch.Tensor | None


@dataclass(frozen=True)
class BudgetStates:
    """How the budgets of episodes are kept.

    Args:
        space ([`ActionSpace`]): The levels.
        steps (`int`): Steps of an episode.
        hard (`bool`): Whether there are limits.
        horizon (`str`): Over what a hard budget is kept, one of `HORIZONS`.
    """

    space: ActionSpace
    steps: int
    hard: bool
    horizon: str

    def processors(self, targets: torch.Tensor) -> ActionProcessorList:
        """The processors of `generate`; an axis that a budget leaves dense stays dense."""
        pinned = left_dense(targets, self.space)
        return ActionProcessorList(budget_processors(pinned, self.hard, self.horizon))

    def begin(self, targets: torch.Tensor) -> Begin:
        """Draw the states with which episodes at these budgets `(episodes, axes)` begin."""
        if not self.hard or self.horizon == "episode":
            return Begin(targets, None)
        opened = Bank.opened(targets, self.space)
        return Begin(targets, opened.begun_with(opened.drawn_balance(torch.rand_like(targets))))

    def walk(self, begin: Begin, levels: torch.Tensor, page_fill: torch.Tensor) -> History:
        """Go through episodes that take these levels, or the nearest ones that the budget allows.

        Args:
            begin ([`Begin`]): How they begin.
            levels (`torch.LongTensor` of shape `(episodes, steps, axes)`): Indices of levels.
            page_fill (`torch.Tensor` of shape `(episodes, steps)`): See [`Observation`].
        """
        rows = len(levels)
        limits = budget_processors((), self.hard, self.horizon)
        limit = next((x for x in limits if isinstance(x, HardBudgetProcessor)), None)
        ledger, counted = BudgetLedger(rows, self.space), torch.ones(rows, dtype=torch.bool)
        ledger.bank, none = begin.bank, torch.empty(rows, 0)
        previous = torch.full((rows,), len(self.space))
        scalars, actions, bounds = [], [previous], []
        for step in range(self.steps):
            left = torch.full((rows,), self.steps - step)
            observation = Observation(
                *(none, none, previous, counted, left, step, step, self.steps),
                targets=begin.targets,
                ledger=ledger,
                action_space=self.space,
                state={},
                page_fill=page_fill[:, step],
            )
            scalars.append(replace(observation, targets=begin.asked).scalars)
            chosen = levels[:, step]
            if limit is not None:
                bounds.append(torch.stack(limit.bounds(observation), dim=1))
                chosen = self.nearest_within(chosen, bounds[-1])
            previous = self.space.ids_of(chosen)
            ledger.record(self.space.ratios[previous], counted)
            actions.append(previous)
        limited = torch.stack(bounds, dim=1) if bounds else None
        return History(torch.stack(scalars, dim=1), torch.stack(actions[:-1], dim=1), limited)

    def allowed_levels(self, bounds: torch.Tensor) -> list[torch.Tensor]:
        """Per axis which levels lie within bounds `(..., 2, axes)`, of shape `(..., levels)`."""
        allowed = []
        for axis, ratios in enumerate(self.space.level_ratios):
            own, ends = torch.as_tensor(ratios), bounds[..., axis, None]
            allowed.append((own >= ends[..., 0, :] - TOLERANCE) & (own <= ends[..., 1, :] + TOLERANCE))
        return allowed

    def nearest_within(self, levels: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
        """The allowed levels that are nearest to others, and rather below than above them.

        Args:
            levels (`torch.LongTensor` of shape `(rows, axes)`): Indices of levels.
            bounds (`torch.Tensor` of shape `(rows, 2, axes)`): Smallest and largest level, in ratio units.
        """
        nearest = []
        for chosen, allowed in zip(levels.unbind(dim=1), self.allowed_levels(bounds), strict=True):
            place = torch.arange(allowed.shape[-1])
            distance = (place - chosen[:, None]).abs() * 2 + (place > chosen[:, None]).long()
            nearest.append(distance.masked_fill(~allowed, 4 * len(place)).argmin(dim=-1))
        return torch.stack(nearest, dim=1)
