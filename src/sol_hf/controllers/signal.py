# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Baselines that follow a budget step by step: each spends more where a signal of the base is high.

For every axis and step, `c` is the level that would spend the rest of the budget exactly if all remaining steps took
it. The step takes one of the two levels around `c`: the upper one if `c` is near it or the signal is high.

    lo ------------ c ------- hi        p = (c - lo) / (hi - lo) + gain * (signal - 0.5);   hi if p >= 0.5

The choice is then limited to levels after which the target can still be met exactly. If there is none, the episode
ends below the target. All axes get the same signal. The sums are those of the ledger, in float32, without a
tolerance: an episode whose target is itself a level can thus end one level below it, as in the published baseline.
"""

import torch

from .base import Controller, Observation
from .levels import closeness


class SignalController(Controller):
    """Base class of controllers with a signal. Subclasses implement [`SignalController.signal`].

    Args:
        gain (`float`, *optional*, defaults to 0.35): Weight of the signal.
    """

    rows_are_independent = True

    def __init__(self, gain: float = 0.35):
        self.gain = gain

    def signal(self, observation: Observation) -> torch.Tensor:
        """The signal of this step, `(rows,)` in 0..1: above 0.5 it favours the upper level, below it the lower."""
        raise NotImplementedError

    def __call__(self, observation: Observation) -> torch.Tensor:
        urge = self.gain * (self.signal(observation).float() - 0.5)
        space = observation.action_space
        targets, ledger = observation.require_targets().double(), observation.ledger
        left = observation.remaining.double().clamp(min=1)
        unspent = targets * (ledger.budgeted_counts() + left[:, None]) - ledger.episode_sums
        ratios = space.ratios_on(targets.device).double()
        columns = zip(ratios.unbind(-1), unspent.unbind(-1), strict=True)
        wanted = [spend(column.unique(), own, left, urge) for column, own in columns]
        return closeness(torch.stack(wanted, dim=-1), space)


def spend(levels: torch.Tensor, unspent: torch.Tensor, left: torch.Tensor, urge: torch.Tensor) -> torch.Tensor:
    """The level that a step takes on one axis.

    Args:
        levels (`torch.Tensor` of shape `(levels,)`): Ascending, in ratio units.
        unspent (`torch.Tensor` of shape `(rows,)`): Sum that the remaining steps may reach.
        left (`torch.Tensor` of shape `(rows,)`): Remaining steps, this one included; at least 1.
        urge (`torch.Tensor` of shape `(rows,)`): Added to the share of the upper level.

    Returns:
        `torch.Tensor` of shape `(rows,)`.
    """
    lowest, highest = levels[0], levels[-1]
    level = (unspent / left).clamp(lowest, highest)
    low, high = at_most(levels, level), at_least(levels, level)
    share = (level - low) / (high - low).clamp(min=1e-6)
    chosen = torch.where((high > low) & (share + urge >= 0.5), high, low)
    least, most = unspent - (left - 1) * highest, unspent - (left - 1) * lowest
    return torch.minimum(torch.maximum(chosen, at_least(levels, least)), at_most(levels, most))


def at_most(levels: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Largest of the ascending levels that is at most each of `values` `(rows,)`; else the smallest of all."""
    index = torch.searchsorted(levels, values, right=True) - 1
    return levels[index.clamp(min=0)]


def at_least(levels: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Smallest of the ascending levels that is at least each of `values` `(rows,)`; else the largest of all."""
    index = torch.searchsorted(levels, values)
    return levels[index.clamp(max=len(levels) - 1)]
