# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The levels next to wanted values, and scores that rank actions by their distance to wanted levels."""

import torch

from ..budget.action_space import ActionSpace


def closeness(wanted: torch.Tensor, space: ActionSpace) -> torch.Tensor:
    """Scores that rank actions by their distance to the wanted levels, 0 for an exact match.

    If the budget rules out the wanted action, the nearest allowed one is chosen.

    Args:
        wanted (`torch.Tensor` of shape `(rows, axes)`): Levels in ratio units.
        space ([`ActionSpace`]): The actions.

    Returns:
        `torch.Tensor` of shape `(rows, n_actions)`.
    """
    return -(space.ratios_on(wanted.device) - wanted[:, None]).abs().sum(dim=-1)


def neighbouring_levels(targets: torch.Tensor, space: ActionSpace) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Per axis the nearest levels at or below and at or above the target, and the share of the upper one.

    Args:
        targets (`torch.Tensor` of shape `(rows, axes)`): In ratio units.
        space ([`ActionSpace`]): The levels.

    Returns:
        Three `torch.Tensor` of shape `(rows, axes)`: lower level, upper level, and the share of upper levels that
        makes the mean meet the target.
    """
    lower, upper = [], []
    for levels, target in zip(space.levels_on(targets.device), targets.unbind(-1), strict=True):
        last = torch.searchsorted(levels, target + 1e-6, right=True).clamp(1, len(levels)) - 1
        low = levels[last]
        lower.append(low)
        upper.append(torch.where(low >= target - 1e-6, low, levels[(last + 1).clamp(max=len(levels) - 1)]))
    low, high = torch.stack(lower, -1), torch.stack(upper, -1)
    share = ((targets - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)
    return low, high, torch.where(high > low, torch.round(share, decimals=6), 0.0)
