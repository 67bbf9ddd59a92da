# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""One number instead of one per axis: the best budget for a net keep rate, from a table that a sweep has measured.

The table holds the front of a policy, by ascending net keep rate; `compute` is interpolated between two of its points:

    net_keep     .36        .54         .71          1 (dense, always there)
                  ├──────────┼───────────┼───────────┤
    budget       (.2,.5,6)  (.5,.7,8)   (.8,.8,9)    (1,1,16)        compute=.45: half way between the first two
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from ..errors import BudgetError
from .action_space import ActionSpace
from .axes import axes_named
from .budget import AxisTarget, Budget


NET_KEEP, LOG_PERPLEXITY = "net_keep", "log_perplexity"


def point_keys(space: ActionSpace) -> tuple[str, ...]:
    """Keys of a point of a calibration table: net keep rate, the axes of the action space, log-perplexity."""
    return (NET_KEEP, *space.axis_names, LOG_PERPLEXITY)


def check_calibration(points: Sequence[Any], space: ActionSpace) -> None:
    """Raise a ValueError if a calibration table is not a front over an action space.

    Args:
        points (`Sequence[dict]`): With the keys [`point_keys`]: the realised net keep rate, the requested budget (in
            axis units), and the log-perplexity.
        space ([`ActionSpace`]): The levels.
    """
    if not points:
        raise ValueError("`calibration` is empty: give it points, or leave it `None`.")
    keys = point_keys(space)
    for point in points:
        if not isinstance(point, dict) or set(point) != set(keys):
            raise ValueError(f"A point of `calibration` has the keys {', '.join(keys)}, got {point!r}.")
        numbers = [point[key] for key in keys]
        if any(isinstance(x, bool) or not isinstance(x, int | float) or not math.isfinite(x) for x in numbers):
            raise ValueError(f"A point of `calibration` consists of finite numbers, got {point!r}.")
        if not 0 < point["net_keep"] <= 1:
            raise ValueError(f"`net_keep` in `calibration` must lie in (0, 1], got {point['net_keep']}.")
        Budget.of({axis: point[axis] for axis in space.axis_names}).check(space)
    for left, right in zip(points, points[1:], strict=False):
        if not (left["net_keep"] < right["net_keep"] and left["log_perplexity"] > right["log_perplexity"]):
            raise ValueError(
                "`calibration` must be a front, `net_keep` ascending and `log_perplexity` descending from point to "
                f"point; {left!r} and {right!r} are not."
            )


def budget_for(compute: AxisTarget, points: Sequence[dict[str, float]] | None) -> Budget:
    """The budget for a net keep rate, interpolated linearly between the two nearest points of a front.

    Above the last point it is interpolated towards the dense budget, which belongs to `compute=1`.

    Args:
        compute (`float` or one per row): Net keep rate, at least that of the first point, at most 1.
        points (`Sequence[dict]`, *optional*): A calibration table, see [`check_calibration`].

    Raises:
        ValueError: if there is no table.
        BudgetError: for a rate outside of the table's range.
    """
    if points is None:
        raise ValueError(
            "`compute` needs a calibration table, which this policy's config lacks: make one with `sol-hf pareto "
            "POLICY --data FILE --out DIR --save`, or pass targets such as `token_keep`, `mlp_keep` and `bits`."
        )
    plain: Any = getattr(compute, "tolist", lambda: compute)()  # for tensors, NumPy arrays and NumPy scalars
    rates = list(plain) if isinstance(plain, list | tuple) else [plain]
    if not rates or any(isinstance(x, bool) or not isinstance(x, int | float) for x in rates):
        raise BudgetError(f"`compute` must be a number, or one number per row, got {compute!r}.")
    lowest = points[0]["net_keep"]
    for rate in rates:
        if not lowest <= rate <= 1:
            raise BudgetError(f"`compute` must lie in {lowest:.3g}..1 for this policy, got {rate}.")
    targets = [_targets_for(rate, points) for rate in rates]
    return Budget.of({axis: [row[axis] for row in targets] for axis in targets[0]})


def _targets_for(rate: float, points: Sequence[dict[str, float]]) -> dict[str, float]:
    """The target of every axis of the table at a net keep rate."""
    axes = axes_named(key for key in points[0] if key not in (NET_KEEP, LOG_PERPLEXITY))
    rates = [point[NET_KEEP] for point in points]
    targets = [{axis.name: float(point[axis.name]) for axis in axes} for point in points]
    if rates[-1] < 1:
        rates, targets = [*rates, 1.0], [*targets, {axis.name: axis.dense for axis in axes}]
    right = bisect_left(rates, rate)
    if rates[right] == rate:
        return targets[right]
    share = (rate - rates[right - 1]) / (rates[right] - rates[right - 1])
    left = targets[right - 1]
    return {axis: left[axis] + share * (value - left[axis]) for axis, value in targets[right].items()}
