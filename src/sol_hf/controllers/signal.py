# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Baselines that follow a budget step by step: each spends more where a signal of the base is high.

At every step an axis still has a level `c` that would spend its budget exactly if it were taken to the episode's end.
The step takes one of the two levels around `c`, the upper one if `c` is near it or the signal is high:

    lo ------------ c ------- hi        p = (c - lo) / (hi - lo) + gain * (signal - 0.5);   hi if p >= 0.5

What is chosen then stays within the levels from which the target can still be met; where no level is, the episode ends
below it. All axes get the same signal. The sums are those of the ledger, in float32, without a tolerance:
a target that is itself a level can thus end one level below it, as in the published baseline.
"""

import torch

from .base import Controller, Observation
from .levels import closeness


class SignalController(Controller):
    """Base class: write [`SignalController.signal`].

    Args:
        gain (`float`, *optional*, defaults to 0.35): Weight of the signal.
    """

    rows_are_independent = True

    def __init__(self, gain: float = 0.35):
        self.gain = gain

    def signal(self, observation: Observation) -> torch.Tensor:
        """How much this step is worth, `(rows,)` in 0..1; 0.5 changes nothing."""
        raise NotImplementedError

    def __call__(self, observation: Observation) -> torch.Tensor:
        urge = self.gain * (self.signal(observation).float() - 0.5)
        space = observation.action_space
        targets, ledger = observation.require_targets().double(), observation.ledger
        left = observation.remaining.double().clamp(min=1)
        unspent = targets * (ledger.episode_counts + left)[:, None] - ledger.episode_sums
        ratios = space.ratios_on(targets.device).double()
        columns = zip(ratios.unbind(-1), unspent.unbind(-1), strict=True)
        wanted = [spend(column.unique(), own, left, urge) for column, own in columns]
        return closeness(torch.stack(wanted, dim=-1), space)


def spend(levels: torch.Tensor, unspent: torch.Tensor, left: torch.Tensor, urge: torch.Tensor) -> torch.Tensor:
    """The level that a step takes on one axis.

    Args:
        levels (`torch.Tensor` of shape `(levels,)`): Ascending, in ratio units.
        unspent (`torch.Tensor` of shape `(rows,)`): What the steps left may sum up to.
        left (`torch.Tensor` of shape `(rows,)`): Steps left, this one included; at least 1.
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
