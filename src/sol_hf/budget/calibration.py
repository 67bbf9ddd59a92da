# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""One number instead of one per axis: the best budget for a share of the compute, from a table that was measured.

A table holds the front of a policy, by ascending cost; `compute` is interpolated between two of its points:

    net_keep     .36        .54         .71          1 (dense)
                  ├──────────┼───────────┼───────────┤
    budget       (.2,.5,6)  (.5,.7,8)   (.8,.8,9)    (1,1,16)        compute=.45: half way between the first two
    loss         +.9        +.2         +.05         0               in nats per token, above dense

The cost is in one of three [`UNITS`], which every point names. A calibration has a table in one of them, or in
several. The dense budget always belongs to a cost of 1. Tables from before the *dense row* was stored say nothing of
its log-perplexity, and so nothing of the loss.
"""

import math
import reprlib
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from ..errors import BudgetError
from .action_space import ActionSpace
from .axes import PUBLISHED_AXES, axes_named
from .budget import AxisTarget, Budget


NET_KEEP, LOG_PERPLEXITY = "net_keep", "log_perplexity"
ROUNDING = 1e-9
QUALITY = "quality"
"""`compute="quality:0.02"` asks for the cheapest setting that loses at most 0.02 nats per token."""
UNITS = {
    NET_KEEP: "net keep rate, the mean of the axes",
    "bytes": "share of the bytes of a dense step",
    "time": "share of the time of a dense step",
}
"""What `compute` can count, and what that is in words."""

Points = Sequence[dict[str, float]]


def point_keys(space: ActionSpace, unit: str = NET_KEEP) -> tuple[str, ...]:
    """Keys of a point of a calibration table: cost in its unit, the axes of the action space, log-perplexity."""
    return (unit, *space.axis_names, LOG_PERPLEXITY)


def unit_of(point: Any) -> str:
    """The unit of a point's cost; net keep for one that names none, which [`check_calibration`] refuses."""
    return next((unit for unit in UNITS if isinstance(point, dict) and unit in point), NET_KEEP)


def units_of(points: Points | None) -> tuple[str, ...]:
    """The units of the tables of a calibration, in the order of its points."""
    return tuple(dict.fromkeys(map(unit_of, points or ())))


def check_unit(unit: Any, name: str = "compute_unit") -> None:
    """Raise a ValueError for a unit that there is not; `name` is that of the argument."""
    if unit not in UNITS:
        raise ValueError(f"`{name}` must be one of {', '.join(UNITS)}, got {reprlib.repr(unit)}.")


def table_in(unit: str | None, points: Points | None) -> Points | None:
    """The points of a calibration whose cost is in a unit, of the first one if that is `None`.

    Raises:
        ValueError: if the calibration has other units only.
    """
    if unit is not None:
        check_unit(unit)
    if points is None:
        return None
    there = units_of(points)
    unit = unit or there[0]
    if unit not in there:
        words = " and ".join(f"`{other}` ({UNITS[other]})" for other in there)
        raise ValueError(
            f"The calibration of this policy has no table in `{unit}`, only in {words}: pass "
            f'`compute_unit="{there[0]}"`, or make one with `sol-hf pareto POLICY --data FILE --out DIR --save '
            f"--unit {unit}`."
        )
    return [point for point in points if unit_of(point) == unit]


def check_calibration(points: Sequence[Any], space: ActionSpace) -> None:
    """Raise a ValueError if a calibration is no front over an action space in each of its units.

    Args:
        points (`Sequence[dict]`): With the keys [`point_keys`]: the realised cost, the requested budget (in axis
            units), and the log-perplexity.
        space ([`ActionSpace`]): The levels.
    """
    if not points:
        raise ValueError("`calibration` is empty: give it points, or leave it `None`.")
    for point in points:
        _check_point(point, space)
    for unit in units_of(points):
        table = [point for point in points if unit_of(point) == unit]
        for left, right in zip(table, table[1:], strict=False):
            falls = left[LOG_PERPLEXITY] > right[LOG_PERPLEXITY] or right[unit] == 1  # cheap steps may beat dense ones
            if not (left[unit] < right[unit] and falls):
                raise ValueError(
                    f"`calibration` must be a front, `{unit}` ascending and `log_perplexity` descending from point to "
                    f"point; {left!r} and {right!r} are not."
                )


def _check_point(point: Any, space: ActionSpace) -> None:
    unit = unit_of(point)
    keys = point_keys(space, unit)
    if not isinstance(point, dict) or set(point) != set(keys):
        others = " or ".join(f"`{other}`" for other in UNITS if other != unit)
        raise ValueError(
            f"A point of `calibration` has the keys {', '.join(keys)}, got {reprlib.repr(point)}. Instead of `{unit}` "
            f"it may have {others}."
        )
    numbers = [point[key] for key in keys]
    if any(isinstance(x, bool) or not isinstance(x, int | float) or not -1e300 < x < 1e300 for x in numbers):
        raise ValueError(f"A point of `calibration` consists of finite numbers, got {reprlib.repr(point)}.")
    if not 0 < point[unit] <= 1:
        raise ValueError(f"`{unit}` in `calibration` must lie in (0, 1], got {point[unit]}.")
    Budget.of({axis: point[axis] for axis in space.axis_names}).check(space)


def dense_row(space: ActionSpace, log_perplexity: float, unit: str = NET_KEEP) -> dict[str, float]:
    """The point of a calibration table at a cost of 1.

    Args:
        space ([`ActionSpace`]): The axes.
        log_perplexity (`float`): Of the base alone, on the texts of the other points.
        unit (`str`, *optional*, defaults to `"net_keep"`): Of the table.
    """
    dense = {axis.name: float(axis.dense) for axis in space.axes}
    return {unit: 1.0, **dense, LOG_PERPLEXITY: log_perplexity}


def budget_for(compute: AxisTarget, points: Points | None, unit: str | None = None) -> Budget:
    """The budget for a share of the compute, interpolated linearly between the two nearest points of a front.

    Above the last point it is interpolated towards the dense budget, which belongs to `compute=1`.

    Args:
        compute (`float` or `str`, or one per row): At least the cost of the first point, at most 1; or
            `"quality:0.02"`, see [`rate_within`].
        points (`Sequence[dict]`, *optional*): A calibration, see [`check_calibration`]. `compute=1` needs none.
        unit (`str`, *optional*): What `compute` counts, one of [`UNITS`]; that of the first point by default.

    Raises:
        ValueError: if there is no table in this unit.
        BudgetError: for a number outside of the table's range, or a quality that no point of the table has.
    """
    table = table_in(unit, points)
    rates = _rates(compute, table)
    if table is None and set(rates) == {1}:
        return Budget.of({axis.name: [axis.dense] * len(rates) for axis in PUBLISHED_AXES})
    table = _require_range(table, rates)
    targets = [_targets_for(rate, table) for rate in rates]
    return Budget.of({axis: [row[axis] for row in targets] for axis in targets[0]})


def expected_loss(compute: AxisTarget, points: Points | None, unit: str | None = None) -> float | list[float]:
    """What a share of the compute costs: log-perplexity above that of the base alone, interpolated linearly.

    It was measured on the texts of the sweep that made the table. On other texts it may be more or less.

    Args:
        compute (`float` or `str`, or a sequence of them): As for [`budget_for`].
        points (`Sequence[dict]`, *optional*): A calibration with a dense row, see [`dense_row`].
        unit (`str`, *optional*): What `compute` counts, one of [`UNITS`]; that of the first point by default.

    Returns:
        `float`, or a list of them for a sequence: nats per token; 0 for `compute=1`.

    Raises:
        ValueError: if there is no table in this unit, or it has no dense row.
        BudgetError: for a number outside of the table's range.
    """
    found = table_in(unit, points)
    rates = _rates(compute, found)
    table = _require_range(found, rates)
    _check_dense_row(table)
    losses = []
    for rate in rates:
        right = _right_of(rate, table)
        share, left = _share_between(rate, table, right), table[max(right - 1, 0)]
        losses.append(left[LOG_PERPLEXITY] + share * (table[right][LOG_PERPLEXITY] - left[LOG_PERPLEXITY]))
    above = [loss - table[-1][LOG_PERPLEXITY] for loss in losses]
    is_sequence = isinstance(_plain(compute), list | tuple)
    return above if is_sequence else above[0]


HOW_TO_MAKE = "`sol-hf pareto POLICY --data FILE --out DIR --save` writes it into the config of a policy."


def _require_range(table: Points | None, rates: Sequence[float]) -> Points:
    """A calibration table whose range holds all rates."""
    if table is None:
        raise ValueError(
            "`compute` needs a calibration table, which this policy's config lacks: make one with `sol-hf pareto "
            "POLICY --data FILE --out DIR --save`, or pass targets such as `token_keep`, `mlp_keep` and `bits`."
        )
    unit = unit_of(table[0])
    lowest = table[0][unit]
    for rate in rates:
        if not lowest <= rate <= 1:
            raise BudgetError(
                f"`compute` must lie in {lowest:.3g}..1 for this policy, in `{unit}` ({UNITS[unit]}), got {rate}."
            )
    return table


def _check_dense_row(table: Points) -> None:
    if table[-1][unit_of(table[0])] < 1:
        raise ValueError(
            "The calibration table of this policy has no dense row, so it does not say what a budget costs: make it "
            f"again. {HOW_TO_MAKE}"
        )


def rate_within(quality: str, table: Points | None) -> float:
    """The cheapest cost whose calibrated loss above dense stays within a limit, such as `"quality:0.02"`.

    Between two measured points the loss is interpolated linearly, as budgets are. What lies between the last point
    and dense was not measured, and is not taken.

    Args:
        quality (`str`): `quality:` and nats per token.
        table (`Sequence[dict]`, *optional*): A calibration table with a dense row.

    Raises:
        ValueError: without such a table.
        BudgetError: for a string of another form, or if no measured point stays within the limit.
    """
    word, _, number = quality.partition(":")
    try:
        most = float(number)
    except ValueError:
        most = math.nan
    if word.strip() != QUALITY or not (math.isfinite(most) and most >= 0):
        raise BudgetError(
            f"`compute` must be a number, one number per row, or `{QUALITY}:` and nats per token, such as "
            f"`{QUALITY}:0.02`, got {reprlib.repr(quality)}."
        )
    table = _require_range(table, [])
    _check_dense_row(table)
    *measured, dense = table
    unit = unit_of(dense)
    losses = [point[LOG_PERPLEXITY] - dense[LOG_PERPLEXITY] for point in measured]
    most += ROUNDING
    if not losses or losses[-1] > most:
        best = f"the best measured one loses {losses[-1]:.3g} at {unit}={measured[-1][unit]:.3g}" if losses else "none"
        raise BudgetError(
            f"No setting of this policy's calibration stays within {float(number):g} nats of dense ({best}): ask for "
            f"`{QUALITY}:` and more, pass `compute` as a share of dense, which is 1, or sweep larger budgets. "
            f"{HOW_TO_MAKE}"
        )
    right = next(place for place, loss in enumerate(losses) if loss <= most)
    if right == 0:
        return measured[0][unit]
    share = (losses[right - 1] - most) / (losses[right - 1] - losses[right])
    return measured[right - 1][unit] + share * (measured[right][unit] - measured[right - 1][unit])


def _plain(compute: AxisTarget) -> Any:
    """A number or a list of numbers, also for tensors, NumPy arrays and NumPy scalars."""
    return getattr(compute, "tolist", lambda: compute)()


def _rates(compute: AxisTarget, table: Points | None) -> list[float]:
    """The numbers of `compute`; for a quality the cost that has it."""
    plain = _plain(compute)
    rates = list(plain) if isinstance(plain, list | tuple) else [plain]
    rates = [rate_within(x, table) if isinstance(x, str) and x.startswith(QUALITY) else x for x in rates]
    if not rates or any(isinstance(x, bool) or not isinstance(x, int | float) for x in rates):
        raise BudgetError(
            f"`compute` must be a number, or one number per row, or `{QUALITY}:` and nats per token, got {compute!r}."
        )
    return rates


def _targets_for(rate: float, table: Points) -> dict[str, float]:
    """The target of every axis of the table at a cost."""
    axes, unit = axes_named(key for key in table[0] if key not in (*UNITS, LOG_PERPLEXITY)), unit_of(table[0])
    dense = {axis.name: float(axis.dense) for axis in axes}
    table = [point for point in table if point[unit] < 1]
    right = _right_of(rate, table)
    after = table[right] if right < len(table) else dense
    share = _share_between(rate, table, right)
    if share == 1:
        return {axis: float(after[axis]) for axis in dense}
    left = table[right - 1]
    return {axis: left[axis] + share * (after[axis] - left[axis]) for axis in dense}


def _right_of(rate: float, table: Points) -> int:
    """Place of the first point whose cost is not below `rate`."""
    return bisect_left([point[unit_of(point)] for point in table], rate)


def _share_between(rate: float, table: Points, right: int) -> float:
    """Where a rate lies between a point at `right` and the one before it: 1 at the former. After the last comes 1."""
    if right == 0:
        return 1.0
    unit = unit_of(table[0])
    below, above = table[right - 1][unit], table[right][unit] if right < len(table) else 1.0
    return (rate - below) / (above - below)
