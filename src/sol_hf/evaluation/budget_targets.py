# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Budgets to evaluate at: a list for the published axes, budgets brought into an action space, and their checks.

A budget has one number per axis, in axis units and in the order of the axes of the action space.
"""

from collections.abc import Sequence

import torch

from ..budget.action_space import ActionSpace
from ..budget.axes import PUBLISHED_AXES
from ..budget.budget import Budget


PUBLISHED_NAMES = tuple(axis.name for axis in PUBLISHED_AXES)
BUDGETS: tuple[tuple[float, ...], ...] = (
    (0.2, 0.5, 6),
    (0.3, 0.6, 7),
    (0.5, 0.7, 8),
    (0.7, 0.8, 9),
    (0.5, 1.0, 16),
    (1.0, 0.6, 16),
    (1.0, 1.0, 6),
    (0.3, 0.9, 8),
    (0.8, 0.5, 8),
)
"""Budgets of the published axes (token_keep, mlp_keep, bits) over the range of the published grid, all axes together
and one at a time."""


def budgets_within(space: ActionSpace, budgets: Sequence[Sequence[float]] = BUDGETS) -> list[tuple[float, ...]]:
    """Budgets clipped to the range of what an action space's levels spend, without repetitions.

    Args:
        space ([`ActionSpace`]): The levels.
        budgets (`Sequence` of `Sequence[float]`, *optional*, defaults to `BUDGETS`): One number per axis of the space,
            or one per published axis; further axes are then dense.

    Returns:
        `list` of `tuple` of `float`: One number per axis of the space.

    Raises:
        ValueError: if a budget has another number of entries.
    """
    clipped = []
    for budget in budgets:
        names = space.axis_names if len(budget) == len(space.axes) else PUBLISHED_NAMES
        if len(budget) != len(names):
            raise ValueError(_wrong_length(budget, space))
        wanted = dict(zip(names, budget, strict=True))
        values = [(wanted.get(axis.name, axis.dense), space.spent[axis.name]) for axis in space.axes]
        clipped.append(tuple(min(max(value, min(levels)), max(levels)) for value, levels in values))
    return list(dict.fromkeys(clipped))


def check_budgets(budgets: Sequence[Sequence[float]], space: ActionSpace) -> torch.Tensor:
    """The targets of budgets, after a check that they can be met.

    Args:
        budgets (`Sequence` of `Sequence[float]`): One number per axis, in axis units.
        space ([`ActionSpace`]): The levels.

    Returns:
        `torch.Tensor` of shape `(budgets, axes)`: In ratio units.

    Raises:
        ValueError: if there is no budget, or the number of entries of one is not the number of axes.
        BudgetError: if a budget is malformed or below the smallest level.
    """
    if not budgets:
        raise ValueError(f"There is no budget to evaluate at: give tuples ({', '.join(space.axis_names)}).")
    targets = []
    for values in budgets:
        if len(values) != len(space.axes):
            raise ValueError(_wrong_length(values, space))
        budget = Budget.of(dict(zip(space.axis_names, values, strict=True)))
        budget.check(space)
        targets.append(budget.targets(1, space=space))
    return torch.cat(targets)


def _wrong_length(budget: Sequence[float], space: ActionSpace) -> str:
    return f"A budget has one number per axis ({', '.join(space.axis_names)}), got {tuple(budget)}."
