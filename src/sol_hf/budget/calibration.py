# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""One dial instead of three: which budget is best at a given net keep rate, from a table that a sweep has measured.

The table holds the front of a policy, by ascending net keep rate; `compute` is read off between two of its points:

    net_keep     .36        .54         .71          1 (dense, always there)
                  ├──────────┼───────────┼───────────┤
    budget       (.2,.5,6)  (.5,.7,8)   (.8,.8,9)    (1,1,16)        compute=.45: half way between the first two
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from ..errors import BudgetError
from .action_space import AXES, DENSE, ActionSpace
from .budget import AxisTarget, Budget


POINT_KEYS = ("net_keep", *AXES, "log_perplexity")


def check_calibration(points: Sequence[Any], space: ActionSpace) -> None:
    """Raise a ValueError if a calibration table is not a front over an action space.

    Args:
        points (`Sequence[dict]`): With the keys `POINT_KEYS`: the net keep rate that was realised, the budget that was
            asked for (in units of the axes), and the log-perplexity there.
        space ([`ActionSpace`]): The levels.
    """
    if not points:
        raise ValueError("`calibration` is empty: give it points, or leave it `None`.")
    for point in points:
        if not isinstance(point, dict) or set(point) != set(POINT_KEYS):
            raise ValueError(f"A point of `calibration` has the keys {', '.join(POINT_KEYS)}, got {point!r}.")
        numbers = [point[key] for key in POINT_KEYS]
        if any(isinstance(x, bool) or not isinstance(x, int | float) or not math.isfinite(x) for x in numbers):
            raise ValueError(f"A point of `calibration` consists of finite numbers, got {point!r}.")
        if not 0 < point["net_keep"] <= 1:
            raise ValueError(f"`net_keep` in `calibration` must lie in (0, 1], got {point['net_keep']}.")
        Budget(*(point[axis] for axis in AXES)).check(space)
    for left, right in zip(points, points[1:], strict=False):
        if not (left["net_keep"] < right["net_keep"] and left["log_perplexity"] > right["log_perplexity"]):
            raise ValueError(
                "`calibration` must be a front, `net_keep` ascending and `log_perplexity` descending from point to "
                f"point; {left!r} and {right!r} are not."
            )


def budget_for(compute: AxisTarget, points: Sequence[dict[str, float]] | None) -> Budget:
    """The budget for a net keep rate, interpolated linearly between the two nearest points of a front.

    Above the last point it is interpolated towards the dense budget, which is that of `compute=1`.

    Args:
        compute (`float` or one per row): Net keep rate, at least that of the first point, at most 1.
        points (`Sequence[dict]`, *optional*): A calibration table, see [`check_calibration`].

    Raises:
        ValueError: if there is no table.
        BudgetError: for a rate out of the table's range.
    """
    if points is None:
        raise ValueError(
            "`compute` needs a calibration table, which this policy's config lacks: make one with `sol-hf pareto "
            "POLICY --data FILE --out DIR --save`, or pass `token_keep`, `mlp_keep` and `bits`."
        )
    plain: Any = getattr(compute, "tolist", lambda: compute)()  # of tensors, and NumPy's arrays and scalars
    rates = list(plain) if isinstance(plain, list | tuple) else [plain]
    if not rates or any(isinstance(x, bool) or not isinstance(x, int | float) for x in rates):
        raise BudgetError(f"`compute` must be a number, or one number per row, got {compute!r}.")
    lowest = points[0]["net_keep"]
    for rate in rates:
        if not lowest <= rate <= 1:
            raise BudgetError(f"`compute` must lie in {lowest:.3g}..1 for this policy, got {rate}.")
    triples = [_triple_for(rate, points) for rate in rates]
    return Budget(*(list(column) for column in zip(*triples, strict=True)))


def _triple_for(rate: float, points: Sequence[dict[str, float]]) -> tuple[float, ...]:
    rates = [point["net_keep"] for point in points]
    triples = [tuple(float(point[axis]) for axis in AXES) for point in points]
    if rates[-1] < 1:
        rates, triples = [*rates, 1.0], [*triples, DENSE]
    right = bisect_left(rates, rate)
    if rates[right] == rate:
        return triples[right]
    share = (rate - rates[right - 1]) / (rates[right] - rates[right - 1])
    return tuple(a + share * (b - a) for a, b in zip(triples[right - 1], triples[right], strict=True))
