# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Numbers for the figures of a sweep: points of every controller, fronts, gains over the fixed schedule."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..evaluation.clusters import standard_error
from ..evaluation.sweep.fronts import pareto_front
from ..evaluation.sweep.table import DOCUMENTS, axes_of
from .style import checked_rows, looks_of


Rows = Iterable[Mapping[str, Any]]
BudgetValues = tuple[float, ...]
"""One number per axis, in axis units."""


@dataclass(frozen=True)
class Point:
    """A controller at a budget, averaged over seeds: net keep spent, log-perplexity and its standard error."""

    budget: BudgetValues
    net_keep: float
    log_perplexity: float
    error: float


def budget_of(row: Mapping[str, Any], axes: Sequence[str]) -> BudgetValues:
    """The budget of a row of a sweep's table."""
    return tuple(float(row[axis]) for axis in axes)


def checked_sweep(
    rows: Rows, columns: Sequence[str], prefixes: Sequence[str] = ("",)
) -> tuple[list[Mapping[str, Any]], tuple[str, ...]]:
    """Rows of the table `sweep` and the names of its axes; a ValueError if there are no rows or a column is missing.

    Args:
        rows: The table `sweep`.
        columns (`Sequence[str]`): Columns that every row must have, apart from those of the axes.
        prefixes (`Sequence[str]`, *optional*, defaults to `("",)`): Prefixes of the columns of the axes that every row
            must have, such as `target_`.
    """
    what = "table `sweep`"
    found = checked_rows(rows, columns, what)
    axes = axes_of(found[0])
    if not axes:
        raise ValueError(f"The {what} has no column of an axis: give one that a sweep wrote.")
    return checked_rows(found, [f"{prefix}{axis}" for prefix in prefixes for axis in axes], what), axes


def points_of(rows: Sequence[Mapping[str, Any]], axes: Sequence[str]) -> dict[str, list[Point]]:
    """Points of every controller, by net keep, from the rows of a sweep's table and the names of its axes."""
    groups: dict[tuple[str, BudgetValues], list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["controller"], budget_of(row, axes)].append(row)
    points: dict[str, list[Point]] = {name: [] for name in looks_of(row["controller"] for row in rows)}
    for (name, budget), group in groups.items():
        columns = ("net_keep", "log_perplexity", "log_perplexity_error")
        net_keep, log_perplexity, error = (math.fsum(row[x] for row in group) / len(group) for x in columns)
        points[name].append(Point(budget, net_keep, log_perplexity, error))
    return {name: sorted(some, key=_by_net_keep) for name, some in points.items()}


def _by_net_keep(point: Point) -> tuple[float, float]:
    return point.net_keep, point.log_perplexity


def front_of(points: Sequence[Point]) -> list[Point]:
    """The points of a controller that no other one dominates in net keep and log-perplexity, by net keep."""
    return [points[index] for index in pareto_front([_by_net_keep(point) for point in points])]


def paired_gains(blocks: Rows, axes: Sequence[str]) -> dict[tuple[str, BudgetValues], tuple[float, float]]:
    """Mean loss of `fixed` minus that of a controller, per controller and budget, and its standard error.

    Args:
        blocks: The table `blocks`: `controller`, `seed`, the axes, `losses`, and `documents` if known; averaged over
            seeds first.
        axes (`Sequence[str]`): Names of the axes.
    """
    losses: dict[tuple[str, BudgetValues], list[torch.Tensor]] = defaultdict(list)
    documents = None
    if found := list(blocks):
        for row in checked_rows(found, ("controller", *axes, "losses"), "table `blocks`"):
            losses[row["controller"], budget_of(row, axes)].append(torch.tensor(row["losses"], dtype=torch.float64))
        documents = found[0].get(DOCUMENTS)
    means = {key: torch.stack(seeds).mean(dim=0) for key, seeds in losses.items()}
    gains = {}
    for (name, budget), own in means.items():
        if name != "fixed" and ("fixed", budget) in means:
            differences = (means["fixed", budget] - own).tolist()
            gains[name, budget] = math.fsum(differences) / len(differences), standard_error(differences, documents)
    return gains
