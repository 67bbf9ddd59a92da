# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What the levels of every axis cost at every place of a page, and the levels of least cost at a mean.

    place in the page     0     1     2   ...    7           a page with few keys is often not read, so that a step
    cost at level .2     .9    .5    .3         .1           which has just begun one loses more

At a mean over the places, the level of each follows from the lower convex hull of its costs: what is left of the mean
goes where it lowers costs most. One place at most lies between two levels, which it takes in turn.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .action_space import ActionSpace


MOST_PLACES = 4096


@dataclass(frozen=True)
class PlaceCosts:
    """Measured costs by the place in a page; small, and stored as JSON.

    Args:
        costs (`dict[str, tuple[tuple[float, ...], ...]]`): By axis and place of a page, the KL(dense ‖ sparse) in nats
            of every level, in the order of the levels of the action space. All axes have the same places.
    """

    costs: Mapping[str, Sequence[Sequence[float]]]

    @classmethod
    def of(cls, space: ActionSpace, tables: Sequence[torch.Tensor]) -> "PlaceCosts":
        """From one tensor `(places, levels)` per axis."""
        return cls({axis: table.tolist() for axis, table in zip(space.axis_names, tables, strict=True)})

    @classmethod
    def from_json(cls, values: Any, space: ActionSpace, page_size: int) -> "PlaceCosts":
        """From what [`PlaceCosts.to_json`] returned.

        Raises:
            ValueError: if these are no costs of the levels of an action space at the places of a page.
        """
        shapes = {axis: (page_size, len(levels)) for axis, levels in space.levels.items()}
        if not isinstance(values, Mapping) or set(values) != set(shapes):
            raise ValueError(f"`place_costs` names the axes {', '.join(shapes)}, got {_brief(values)}.")
        for axis, (places, levels) in shapes.items():
            table = values[axis]
            rows = [table] if not isinstance(table, list | tuple) else list(table)
            if len(rows) != places or any(not _is_row(row, levels) for row in rows):
                raise ValueError(
                    f"`place_costs` of `{axis}` are {places} lists (`page_size`) of {levels} numbers, 0 or more (one "
                    f"for each level), got {_brief(table)}."
                )
        return cls({axis: tuple(tuple(map(float, row)) for row in values[axis]) for axis in shapes})

    def to_json(self) -> dict[str, list[list[float]]]:
        """Values for JSON."""
        return {axis: [[float(f"{x:.6g}") for x in row] for row in table] for axis, table in self.costs.items()}

    @property
    def places(self) -> int:
        """Places of a page."""
        return len(next(iter(self.costs.values())))


def _is_row(row: Any, levels: int) -> bool:
    if not isinstance(row, list | tuple) or len(row) != levels:
        return False
    return all(isinstance(x, int | float) and not isinstance(x, bool) and 0 <= x < 1e30 for x in row)


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def levels_by_place(
    costs: torch.Tensor, levels: torch.Tensor, mean: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Levels of least cost at a mean over the places.

    Args:
        costs (`torch.Tensor` of shape `(places, levels)`): Cost of every level at every place; a higher level counts
            as no dearer than the ones below it.
        levels (`torch.Tensor` of shape `(levels,)`): In ratio units, in any order.
        mean (`float`): Clipped to the range of the levels.

    Returns:
        Three `torch.DoubleTensor` of shape `(places,)`: lower level, upper level, and share of the upper one.
    """
    order = levels.double().argsort()
    sizes = levels.double()[order]
    low = torch.full((len(costs),), float(sizes[0]), dtype=torch.float64)
    high, share = low.clone(), torch.zeros_like(low)
    left = (min(max(mean, float(sizes[0])), float(sizes[-1])) - float(sizes[0])) * len(costs)
    segments = [
        (slope, place, begin, end)
        for place, row in enumerate(costs.double()[:, order].cummin(dim=1).values)
        for slope, begin, end in _hull(sizes.tolist(), row.tolist())
    ]
    for _, place, begin, end in sorted(segments):  # the steepest fall first; those of a place in their order
        if left <= 1e-9:
            break
        taken = min(1.0, left / (end - begin))
        left -= taken * (end - begin)
        low[place], high[place], share[place] = (end, end, 0.0) if taken == 1 else (begin, end, taken)
    return low, high, share


def _hull(sizes: Sequence[float], costs: Sequence[float]) -> list[tuple[float, float, float]]:
    """Segments of the lower convex hull of costs over levels: slope, beginning and end of each."""
    points: list[tuple[float, float]] = []
    for point in zip(sizes, costs, strict=True):
        if points and point[0] - points[-1][0] < 1e-9:  # levels that spend the same
            continue
        while len(points) > 1 and _slope(points[-2], points[-1]) >= _slope(points[-1], point):
            points.pop()
        points.append(point)
    return [(_slope(a, b), a[0], b[0]) for a, b in zip(points, points[1:], strict=False)]


def _slope(left: tuple[float, float], right: tuple[float, float]) -> float:
    return (right[1] - left[1]) / (right[0] - left[0])
