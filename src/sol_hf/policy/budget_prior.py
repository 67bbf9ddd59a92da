# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A prior over levels that depends on the budget only."""

import math
from collections.abc import Sequence
from statistics import median

import numpy as np
import torch
from torch import nn
from transformers import initialization as init

from ..budget.action_space import ActionSpace
from ..budget.scalars import ScalarColumns


TIE_MARGIN = 1e-5
"""A value is rounded up only if it is nearer to the upper level than to the lower by this much, in ratio units."""


class BudgetPrior(nn.Module):
    r"""Logits per level that depend on the budget only: \\(-((level - centre) / width)^2\\) on every axis.

    The centre is `target - overspent / (1 + repayment_spread * steps left)`, in ratio units. With a spread of 0, the
    initial value, the next step compensates everything that was overspent: the best level is then that of error
    diffusion, and on evenly spaced levels the schedule is that of [`FixedController`] for a single row. With a larger
    spread an episode may cost more or less than its target, and the budget is kept on average only.

    The number of counted steps is not among the scalars. All earlier steps of the episode are assumed to be counted,
    which holds unless the text is shorter than sink and window.

    Args:
        space ([`ActionSpace`]): The levels.
        episode_length (`int`): Steps in an episode.
    """

    def __init__(self, space: ActionSpace, episode_length: int):
        super().__init__()
        self.episode_length = episode_length
        self.levels = tuple(tuple(value / axis.scale for value in space.levels[axis.name]) for axis in space.axes)
        self.columns = ScalarColumns(len(space.axes))
        self._mean_divisors = space.mean_divisors
        self._divisors = np.array(space.mean_divisors, dtype=np.float32)
        self._flat_levels = np.array([level for levels in self.levels for level in levels], dtype=np.float32)
        self._axis_of_level = np.array([axis for axis, levels in enumerate(self.levels) for _ in levels])
        self.log_width = nn.Parameter(torch.empty(len(space.axes)))
        self.repayment_spread = nn.Parameter(torch.empty(len(space.axes)))
        self._on_device: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Widths of one level, and a spread of 0."""
        init.copy_(self.log_width, torch.tensor([math.log(_spacing(levels)) for levels in self.levels]))
        init.zeros_(self.repayment_spread)

    def forward(self, scalars: torch.Tensor) -> torch.Tensor:
        """Logits per level from the remaining budget.

        Args:
            scalars (`torch.Tensor` of shape `(..., 2 + 2 * axes)` or wider): From [`BudgetLedger.scalars`].

        Returns:
            `torch.Tensor` of shape `(..., sum(level_counts))`: in float32, or float64 if the scalars are.
        """
        levels, axis_of_level = self._levels_on(scalars.device)
        centre = self.centre(scalars)[..., axis_of_level]
        width = self.log_width.float().exp()[axis_of_level]
        return -(((levels - centre) / width) ** 2)

    def centre(self, scalars: torch.Tensor) -> torch.Tensor:
        """The level that every axis should take next, in ratio units: `(..., 2 + 2 * axes)` to `(..., axes)`."""
        scalars = scalars if scalars.dtype == torch.float64 else scalars.float()
        targets, drift = scalars[..., self.columns.targets], scalars[..., self.columns.drift]
        step = (scalars[..., self.columns.progress] * self.episode_length).round() - 1
        means = zip((drift + targets).unbind(dim=-1), self._mean_divisors, strict=True)
        mean = torch.stack([mean if divisor == 1 else mean * divisor for mean, divisor in means], dim=-1)
        overspent = (mean - targets) * step
        steps_left = (self.episode_length - step).clamp(min=1)
        share = 1 / (1 + self.repayment_spread.float().clamp(min=0) * steps_left)
        return targets - overspent * share - TIE_MARGIN

    def of_step(self, scalars: np.ndarray) -> np.ndarray:
        """The logits of one step as `forward` computes them, by numpy, which takes a tenth of the time.

        Args:
            scalars (`np.ndarray` of shape `(rows, columns)`): In float32.

        Returns:
            `np.ndarray` of shape `(rows, sum(level_counts))`.
        """
        targets, drift = scalars[:, self.columns.targets], scalars[:, self.columns.drift]
        step = np.rint(scalars[:, self.columns.progress] * self.episode_length) - 1
        overspent = ((drift + targets) * self._divisors - targets) * step
        steps_left = np.maximum(self.episode_length - step, 1)
        spread, width = self.repayment_spread.detach().numpy(), self.log_width.detach().exp().numpy()
        share = 1 / (1 + np.maximum(spread, 0) * steps_left)
        centre = targets - overspent * share - TIE_MARGIN
        distance = (self._flat_levels - centre[:, self._axis_of_level]) / width[self._axis_of_level]
        return -(distance * distance)

    def tables(self) -> tuple[np.ndarray, np.ndarray]:
        """For compiled code: the levels of all axes, and the divisors of the means of every axis, in float32."""
        return self._flat_levels, self._divisors

    def _levels_on(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Levels in ratio units and the axis of each, both `(sum(level_counts),)`; created once per device.

        They are not buffers: buffers would be rounded together with the weights, and `from_pretrained` would leave
        them uninitialized.
        """
        if device not in self._on_device:
            axes = [axis for axis, levels in enumerate(self.levels) for _ in levels]
            with torch.inference_mode(False):  # these tensors are used in training, too
                levels = torch.tensor([level for levels in self.levels for level in levels], device=device)
                self._on_device[device] = levels, torch.tensor(axes, device=device)
        return self._on_device[device]


def _spacing(levels: Sequence[float]) -> float:
    """The median distance between neighbouring levels, 1 for a single level."""
    ordered = sorted(levels)
    gaps = [high - low for low, high in zip(ordered, ordered[1:], strict=False)]
    return median(gaps) if gaps else 1.0
