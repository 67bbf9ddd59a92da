# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The bank of a hard budget over a generation: what cheap steps have saved, dear ones may spend.

Per row and axis, in ratio units, for a target `t` and the largest level `max`:

    at the start of a call     balance = max - t                      the allowance: one step at the largest level
    a step at level v          needs v <= balance + t;                balance becomes balance + t - v
    at the end of an episode   balance = min(balance, MOST_SAVED)     savings do not pile up without end

The balance never falls below 0. So after `N` steps of a call the sum is at most `t * N + (max - t)`. A call that goes
on with the text of the one before, without new tokens, has its bank, too: this then holds of their steps together.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from .action_space import ActionSpace


TOLERANCE = 1e-5
"""Up to which sums keep a budget, in ratio units. A target as near to the largest level holds an axis there."""
BUDGET_MODES = ("hard", "soft")
"""Whether steps are held to a budget, or a controller is trusted with it: `budget_mode`."""
HORIZONS = ("generation", "episode")
"""Over what a hard budget is kept: `budget_horizon`."""
MOST_SAVED = 4.0
"""Largest balance at the start of an episode, in ratio units: that of four steps that cost nothing."""
SPENT_WITHIN = 32
"""Steps over which a controller is asked to spend what the balance has above the allowance, or to win it back."""
FARTHEST = 0.1
"""Farthest that what a controller is asked may lie from the target."""
AT_ALLOWANCE = 0.25
"""Share of drawn balances that are the allowance."""


@dataclass(frozen=True)
class Bank:
    """The balance of every row and axis. A change makes a new bank.

    Args:
        targets (`torch.Tensor` of shape `(rows, axes)`): The budget, in ratio units.
        goals (`torch.Tensor` of shape `(rows, axes)`): The same; the largest level for a target that is as large.
        least (`torch.Tensor` of shape `(rows, axes)`): The smallest level.
        allowance (`torch.Tensor` of shape `(rows, axes)`): The largest level minus the goal.
        begin (`torch.Tensor` of shape `(rows, axes)`): Balance at the start of the call.
        balance (`torch.Tensor` of shape `(rows, axes)`): Balance now.
        asked (`torch.Tensor` of shape `(rows, axes)`): What a controller with `follows_bank` is asked to spend in this
            episode: the target, and 1/32 of what the balance at the start of the episode had above the allowance.
        steps (`int`, *optional*, defaults to 0): Steps that the balance is of.
    """

    targets: torch.Tensor
    goals: torch.Tensor
    least: torch.Tensor
    allowance: torch.Tensor
    begin: torch.Tensor
    balance: torch.Tensor
    asked: torch.Tensor
    steps: int = 0

    @classmethod
    def opened(cls, targets: torch.Tensor, space: ActionSpace) -> "Bank":
        """The bank at the start of a call.

        Args:
            targets (`torch.Tensor` of shape `(rows, axes)`): The budget, in ratio units.
            space ([`ActionSpace`]): The levels.
        """
        ratios = space.ratios_on(targets.device)
        largest, least = ratios.amax(0), ratios.amin(0).expand_as(targets)
        goals = torch.where(targets >= largest - TOLERANCE, largest, targets)
        allowance = largest - goals
        return cls(targets, goals, least, allowance, allowance, allowance, targets)

    def going_on(self, before: "Bank") -> "Bank":
        """The bank at the start of a call that goes on with the text of another one, at whose end it was `before`.

        What was saved under another target is lost, what was overspent is not.
        """
        is_same, left = before.targets == self.targets, before.balance - before.allowance
        balance = (self.allowance + torch.where(is_same, left, left.clamp(max=0))).clamp(min=0)
        asked = torch.where(is_same, before.asked, self.targets)
        return replace(self, begin=balance, balance=balance, asked=asked, steps=before.steps)

    def after(self, ratios: torch.Tensor, counted: torch.Tensor, held: torch.Tensor | None = None) -> "Bank":
        """The bank after a step.

        Args:
            ratios (`torch.Tensor` of shape `(rows, axes)`): Its levels, in ratio units.
            counted (`torch.Tensor` of shape `(rows,)`): 1 in rows in which it counts, else 0.
            held (`torch.BoolTensor` of shape `(rows, axes)`, *optional*): Axes on which it does not count.
        """
        saved = (self.goals - ratios) * counted[:, None]
        saved = saved if held is None else saved.masked_fill(held, 0)
        return replace(self, balance=self.balance + saved, steps=self.steps + 1)

    def before(self, ratios: torch.Tensor, counted: torch.Tensor, held: torch.Tensor | None = None) -> "Bank":
        """The bank before a step; arguments as for [`Bank.after`]. A step that was not counted changes nothing."""
        if not self.steps:
            return self
        return replace(self.after(ratios, -counted, held), steps=self.steps - 1)

    def begun_with(self, balance: torch.Tensor) -> "Bank":
        """The bank at the start of a later episode of a call, to which the earlier ones have left a balance.

        Args:
            balance (`torch.Tensor` of shape `(rows, axes)`): In ratio units; negative numbers count as 0.
        """
        return replace(self, balance=balance.clamp(min=0)).after_episode()

    def drawn_balance(self, shares: torch.Tensor) -> torch.Tensor:
        """Balances with which the episodes of a long text begin, of shape `(rows, axes)`.

        A quarter of them is the allowance, as at the start of every call; half of the others is below, and the other
        half above it, as far as what a controller is asked depends on it.

        Args:
            shares (`torch.Tensor` of shape `(rows, axes)`): Uniform random numbers in [0, 1).
        """
        place = (shares - AT_ALLOWANCE) / (1 - AT_ALLOWANCE) * 2
        above = (self.allowance + (place - 1) * (SPENT_WITHIN * FARTHEST)).clamp(max=MOST_SAVED)
        drawn = torch.where(place < 1, self.allowance * place, above)
        return torch.where(shares < AT_ALLOWANCE, self.allowance, drawn)

    def after_episode(self) -> "Bank":
        """The bank at the start of the next episode."""
        balance = self.balance.clamp(max=MOST_SAVED)
        shift = ((balance - self.allowance) / SPENT_WITHIN).clamp(-FARTHEST, FARTHEST)
        within = torch.maximum(torch.minimum(shift, self.allowance), self.least - self.goals)
        return replace(self, balance=balance, asked=self.targets + within)

    def most(self) -> torch.Tensor:
        """The largest level that every axis can pay for, `(rows, axes)`."""
        return self.balance + self.goals

    def most_to_end(self, left: torch.Tensor) -> torch.Tensor:
        """The largest level after which the mean of the call can still end at the target, `(rows, axes)`.

        Args:
            left (`torch.Tensor` of shape `(rows,)`): Steps left, this one included.
        """
        left = left[:, None]
        return self.balance - self.begin + self.goals * left - (left - 1) * self.least

    def map_rows(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "Bank":
        """The bank after a row-wise function (select, repeat, reorder)."""
        names = (field.name for field in fields(self) if field.name != "steps")
        rows: dict[str, Any] = {name: function(getattr(self, name)) for name in names}
        return replace(self, **rows)
