# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""One number instead of one per axis: the best budget for a net keep rate, from a table that a sweep has measured.

The table holds the front of a policy, by ascending net keep rate; `compute` is interpolated between two of its points:

    net_keep     .36        .54         .71          1 (dense)
                  ├──────────┼───────────┼───────────┤
    budget       (.2,.5,6)  (.5,.7,8)   (.8,.8,9)    (1,1,16)        compute=.45: half way between the first two
    loss         +.9        +.2         +.05         0               in nats per token, above dense

The dense budget always belongs to a net keep rate of 1. Tables from before the *dense row* was stored say nothing of
its log-perplexity, and so nothing of the loss.
"""

import reprlib
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from ..errors import BudgetError
from .action_space import ActionSpace
from .axes import PUBLISHED_AXES, axes_named
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
            raise ValueError(f"A point of `calibration` has the keys {', '.join(keys)}, got {reprlib.repr(point)}.")
        numbers = [point[key] for key in keys]
        if any(isinstance(x, bool) or not isinstance(x, int | float) or not -1e300 < x < 1e300 for x in numbers):
            raise ValueError(f"A point of `calibration` consists of finite numbers, got {reprlib.repr(point)}.")
        if not 0 < point["net_keep"] <= 1:
            raise ValueError(f"`net_keep` in `calibration` must lie in (0, 1], got {point['net_keep']}.")
        Budget.of({axis: point[axis] for axis in space.axis_names}).check(space)
    for left, right in zip(points, points[1:], strict=False):
        falls = left[LOG_PERPLEXITY] > right[LOG_PERPLEXITY] or right[NET_KEEP] == 1  # cheap steps may beat dense ones
        if not (left[NET_KEEP] < right[NET_KEEP] and falls):
            raise ValueError(
                "`calibration` must be a front, `net_keep` ascending and `log_perplexity` descending from point to "
                f"point; {left!r} and {right!r} are not."
            )


def dense_row(space: ActionSpace, log_perplexity: float) -> dict[str, float]:
    """The point of a calibration table at a net keep rate of 1.

    Args:
        space ([`ActionSpace`]): The axes.
        log_perplexity (`float`): Of the base alone, on the texts of the other points.
    """
    dense = {axis.name: float(axis.dense) for axis in space.axes}
    return {NET_KEEP: 1.0, **dense, LOG_PERPLEXITY: log_perplexity}


def budget_for(compute: AxisTarget, points: Sequence[dict[str, float]] | None) -> Budget:
    """The budget for a net keep rate, interpolated linearly between the two nearest points of a front.

    Above the last point it is interpolated towards the dense budget, which belongs to `compute=1`.

    Args:
        compute (`float` or one per row): Net keep rate, at least that of the first point, at most 1.
        points (`Sequence[dict]`, *optional*): A calibration table, see [`check_calibration`]. `compute=1` needs none.

    Raises:
        ValueError: if there is no table.
        BudgetError: for a rate outside of the table's range.
    """
    rates = _rates(compute)
    if points is None and set(rates) == {1}:
        return Budget.of({axis.name: [axis.dense] * len(rates) for axis in PUBLISHED_AXES})
    points = _require_table(points, rates)
    targets = [_targets_for(rate, points) for rate in rates]
    return Budget.of({axis: [row[axis] for row in targets] for axis in targets[0]})


def expected_loss(compute: AxisTarget, points: Sequence[dict[str, float]] | None) -> float | list[float]:
    """What a net keep rate costs: log-perplexity above that of the base alone, interpolated linearly.

    It was measured on the texts of the sweep that made the table. On other texts it may be more or less.

    Args:
        compute (`float` or a sequence of them): Net keep rate, at least that of the first point, at most 1.
        points (`Sequence[dict]`, *optional*): A calibration table with a dense row, see [`dense_row`].

    Returns:
        `float`, or a list of them for a sequence: nats per token; 0 for `compute=1`.

    Raises:
        ValueError: if there is no table, or it has no dense row.
        BudgetError: for a rate outside of the table's range.
    """
    rates = _rates(compute)
    points = _require_table(points, rates)
    if points[-1][NET_KEEP] < 1:
        raise ValueError(
            "The calibration table of this policy has no dense row, so it does not say what a budget costs: make it "
            f"again. {HOW_TO_MAKE}"
        )
    losses = []
    for rate in rates:
        right = _right_of(rate, points)
        share, left = _share_between(rate, points, right), points[max(right - 1, 0)]
        losses.append(left[LOG_PERPLEXITY] + share * (points[right][LOG_PERPLEXITY] - left[LOG_PERPLEXITY]))
    above = [loss - points[-1][LOG_PERPLEXITY] for loss in losses]
    is_sequence = isinstance(_plain(compute), list | tuple)
    return above if is_sequence else above[0]


HOW_TO_MAKE = "`sol-hf pareto POLICY --data FILE --out DIR --save` writes it into the config of a policy."


def _require_table(points: Sequence[dict[str, float]] | None, rates: Sequence[float]) -> Sequence[dict[str, float]]:
    """A calibration table whose range holds all rates."""
    if points is None:
        raise ValueError(
            "`compute` needs a calibration table, which this policy's config lacks: make one with `sol-hf pareto "
            "POLICY --data FILE --out DIR --save`, or pass targets such as `token_keep`, `mlp_keep` and `bits`."
        )
    lowest = points[0][NET_KEEP]
    for rate in rates:
        if not lowest <= rate <= 1:
            raise BudgetError(f"`compute` must lie in {lowest:.3g}..1 for this policy, got {rate}.")
    return points


def _plain(compute: AxisTarget) -> Any:
    """A number or a list of numbers, also for tensors, NumPy arrays and NumPy scalars."""
    return getattr(compute, "tolist", lambda: compute)()


def _rates(compute: AxisTarget) -> list[float]:
    """The net keep rates of `compute`."""
    plain = _plain(compute)
    rates = list(plain) if isinstance(plain, list | tuple) else [plain]
    if not rates or any(isinstance(x, bool) or not isinstance(x, int | float) for x in rates):
        raise BudgetError(f"`compute` must be a number, or one number per row, got {compute!r}.")
    return rates


def _targets_for(rate: float, points: Sequence[dict[str, float]]) -> dict[str, float]:
    """The target of every axis of the table at a net keep rate."""
    axes = axes_named(key for key in points[0] if key not in (NET_KEEP, LOG_PERPLEXITY))
    dense = {axis.name: float(axis.dense) for axis in axes}
    points = [point for point in points if point[NET_KEEP] < 1]
    right = _right_of(rate, points)
    after = points[right] if right < len(points) else dense
    share = _share_between(rate, points, right)
    if share == 1:
        return {axis: float(after[axis]) for axis in dense}
    left = points[right - 1]
    return {axis: left[axis] + share * (after[axis] - left[axis]) for axis in dense}


def _right_of(rate: float, points: Sequence[dict[str, float]]) -> int:
    """Place of the first point whose net keep rate is not below `rate`."""
    return bisect_left([point[NET_KEEP] for point in points], rate)


def _share_between(rate: float, points: Sequence[dict[str, float]], right: int) -> float:
    """Where a rate lies between a point at `right` and the one before it: 1 at the former. After the last comes 1."""
    if right == 0:
        return 1.0
    below, above = points[right - 1][NET_KEEP], points[right][NET_KEEP] if right < len(points) else 1.0
    return (rate - below) / (above - below)
