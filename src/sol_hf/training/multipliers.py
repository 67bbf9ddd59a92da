# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Lagrange multipliers of budgets: what a unit of compute costs in nats, so that budgets are met on the average.

A penalty for every episode that misses its budget punishes an allocation that gives dear texts more than cheap ones,
which is what there is to gain. A multiplier holds the mean over texts to the budget instead:

    reward of a step     task reward - sum over axes of  multiplier * (level - what the episode is asked to spend)
    after every batch    multiplier += rate * (mean spent - mean asked), and never below 0        (dual ascent)

There is one multiplier per axis and budget bin. Between the middles of two bins it is interpolated, and an episode
counts for both. Under a hard budget over the generation the multiplier is the price of what the bank has: without one,
an episode would spend it all, since its rewards end before the bank is missed.
"""

from collections.abc import Mapping, Sequence

import torch

from ..budget.action_space import ActionSpace


LEAST_WIDTH = 1e-6
"""Smallest width of a range of budgets, in ratio units, so that one number is a range, too."""


class Multipliers:
    """Multipliers of all axes and budget bins, in nats per step and unit of ratio.

    Args:
        space ([`ActionSpace`]): The axes. Axes without a choice have no multipliers.
        ranges (`Sequence` of `tuple[float, float]`): Per axis the smallest and the largest budget, in ratio units.
        bins (`int`): Bins of each range. Budgets beyond it belong to the first or the last one.
        rate (`float`): Change of a multiplier after a batch in which all episodes of its bin spend 1 too much.

    Attributes:
        values (`torch.DoubleTensor` of shape `(axes, bins)`): The multipliers, at least 0.
    """

    def __init__(self, space: ActionSpace, ranges: Sequence[tuple[float, float]], bins: int, rate: float):
        if bins < 1 or rate < 0:
            raise ValueError(f"There must be at least 1 bin and a rate of at least 0, got {bins} and {rate}.")
        self.axis_names, self.bins, self.rate = space.axis_names, bins, rate
        self.low = torch.tensor([low for low, _ in ranges], dtype=torch.float64)
        width = torch.tensor([high for _, high in ranges], dtype=torch.float64) - self.low
        self.width = width.clamp(min=LEAST_WIDTH)
        self.is_free = torch.tensor([len(set(spent)) > 1 for spent in space.spent.values()])
        self.values = torch.zeros(len(self.axis_names), bins, dtype=torch.float64)

    @property
    def middles(self) -> torch.Tensor:
        """Middles of the bins, of shape `(axes, bins)` in ratio units."""
        return self.low[:, None] + self.width[:, None] * (torch.arange(self.bins) + 0.5) / self.bins

    def begin_with(self, prices: Mapping[str, Sequence[Sequence[float]]]) -> None:
        """Take known prices as the first multipliers.

        Args:
            prices (`Mapping[str, Sequence]`): Per axis pairs of a budget, in ratio units and in ascending order, and
                of a price, in nats per step and unit of ratio. Axes may be left out.

        Raises:
            ValueError: for an unknown axis, or prices that are not finite numbers of at least 0.
        """
        values = self.values.clone()
        for name, pairs in prices.items():
            if name not in self.axis_names:
                raise ValueError(f"There are prices of {name!r}, but the axes are {', '.join(self.axis_names)}.")
            budgets, found = torch.tensor(pairs, dtype=torch.float64).T.contiguous()
            if not bool((found.isfinite() & (found >= 0)).all()):
                raise ValueError(f"The prices of {name} must be finite numbers of at least 0, got {found.tolist()}.")
            axis = self.axis_names.index(name)
            place = self.middles[axis].clamp(float(budgets[0]), float(budgets[-1]))
            upper = torch.searchsorted(budgets, place).clamp(1, len(budgets) - 1)
            share = (place - budgets[upper - 1]) / (budgets[upper] - budgets[upper - 1])
            values[axis] = found[upper - 1] + share * (found[upper] - found[upper - 1])
        self.values = torch.where(self.is_free[:, None], values, 0.0)

    def weights(self, asked: torch.Tensor) -> torch.Tensor:
        """How much each bin counts for episodes, of shape `(rows, axes, bins)`; they add up to 1.

        Args:
            asked (`torch.Tensor` of shape `(rows, axes)`): What the episodes are asked to spend, in ratio units.
        """
        place = ((asked.double() - self.low) / self.width * self.bins - 0.5).clamp(0, self.bins - 1)
        return (1 - (place[..., None] - torch.arange(self.bins)).abs()).clamp(min=0)

    def of(self, asked: torch.Tensor) -> torch.Tensor:
        """The multipliers of episodes `(rows, axes)`, on the device of `asked`."""
        return (self.weights(asked.cpu()) * self.values).sum(dim=-1).to(asked)

    def costs(self, ratios: torch.Tensor, counted: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
        """What the steps of episodes cost above what they were asked to spend, `(rows, steps)` in nats.

        Args:
            ratios (`torch.Tensor` of shape `(rows, steps, axes)`): Levels of the actions, in ratio units.
            counted (`torch.BoolTensor` of shape `(rows, steps)`): Steps that are counted; others cost nothing.
            asked (`torch.Tensor` of shape `(rows, axes)`): In ratio units.
        """
        above = (ratios - asked[:, None]) * counted[..., None]
        return (above * self.of(asked)[:, None]).sum(dim=-1)

    def ascend(self, asked: torch.Tensor, spent: torch.Tensor) -> None:
        """Raise the multipliers of budgets that were overspent, and lower those of others.

        Args:
            asked (`torch.Tensor` of shape `(rows, axes)`): Of the episodes of all processes, in ratio units.
            spent (`torch.Tensor` of shape `(rows, axes)`): Their means, in ratio units.
        """
        errors = (spent.cpu().double() - asked.cpu().double())[..., None]
        change = (self.weights(asked.cpu()) * errors).mean(dim=0) * self.bins
        values = (self.values + self.rate * change).clamp(min=0)
        self.values = torch.where(self.is_free[:, None], values, 0.0)
