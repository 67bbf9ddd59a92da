# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A figure of several sweeps: what their controllers lose against the share of the bytes that they read."""

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from ..evaluation.sweep.fronts import pareto_front
from .style import LOOKS, OTHER_LOOKS, checked_rows, styled
from .sweep_points import Rows, budget_of, checked_sweep


COLUMNS = ("controller", "divergence", "bytes_per_token", "dense_bytes_per_token")
SHARES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 1, 1.4, 2)
DIVERGENCES = (0, 0.002, 0.01, 0.03, 0.1, 0.2, 0.4, 0.7, 1, 2, 5)
"""Ticks of the two scales."""
COLOURS = (LOOKS["policy"].color, LOOKS["fixed"].color, LOOKS["entropy"].color, *(look.color for look in OTHER_LOOKS))


class BytesPoint(NamedTuple):
    """A controller at a budget, averaged over seeds.

    Args:
        share (`float`): Bytes that a step reads over those of a dense step, KV refresh and policy included.
        divergence (`float`): KL(dense ‖ sparse), in nats a token.
    """

    share: float
    divergence: float


def bytes_points(rows: Rows) -> dict[str, list[BytesPoint]]:
    """Points of every controller but the base itself, by bytes, from the table `sweep`."""
    table, axes = checked_sweep(checked_rows(rows, COLUMNS, "table `sweep`"), COLUMNS)
    groups = defaultdict(list)
    for row in table:
        if row["controller"] != "dense":
            share = row["bytes_per_token"] / row["dense_bytes_per_token"]
            groups[row["controller"], budget_of(row, axes)].append(BytesPoint(share, row["divergence"]))
    points = defaultdict(list)
    for (name, _), seeds in groups.items():
        points[name].append(BytesPoint(*(math.fsum(values) / len(seeds) for values in zip(*seeds, strict=True))))
    return {name: sorted(some) for name, some in points.items()}


@styled
def plot_bytes_front(sweeps: Mapping[str, Rows], base: str = "a dense step") -> Figure:
    """Plot KL(dense ‖ sparse) against the share of the bytes, with a front per sweep and controller.

    Sweeps differ in colour, controllers in marker: filled for the policy, hollow for all others. Points on the front
    of their controller are connected. Dense steps are at (1, 0).

    Args:
        sweeps (`Mapping[str, Rows]`): Tables `sweep` by the names of their action spaces, each with `controller`, the
            axes, `divergence`, `bytes_per_token` and `dense_bytes_per_token`.
        base (`str`, *optional*, defaults to `"a dense step"`): What reads all bytes, for the label.

    Returns:
        `matplotlib.figure.Figure`

    Raises:
        ValueError: if there is no sweep, or a table is empty or lacks a column.
    """
    if not sweeps:
        raise ValueError("There is nothing to draw: give at least one sweep.")
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for number, (sweep, rows) in enumerate(sweeps.items()):
        colour = COLOURS[number % len(COLOURS)]
        for name, points in bytes_points(rows).items():
            look = LOOKS.get(name, OTHER_LOOKS[0])
            fill = colour if name == "policy" else "white"
            style: dict[str, Any] = dict(color=colour, marker=look.marker, markerfacecolor=fill)
            front = [points[place] for place in pareto_front(points)]
            line = "-" if name == "policy" else "--"
            axes.plot(*zip(*points, strict=True), linestyle="", **style)
            axes.plot(*zip(*front, strict=True), linestyle=line, linewidth=1.2, label=f"{sweep}, {name}", **style)
    axes.plot([1], [0], color=LOOKS["dense"].color, marker=LOOKS["dense"].marker, linestyle="", label="dense")
    axes.set_xlabel(f"bytes read, as a share of those of {base}")
    axes.set_ylabel("KL(dense ‖ sparse), nats a token")
    _spread(axes)
    axes.legend()
    return figure


def _spread(axes: Axes) -> None:
    """Spread what is small: bytes by their logarithm, KL, which is 0 for dense steps, by its root."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(SHARES))
    axes.set_yscale("function", functions=(lambda kl: np.sqrt(np.maximum(kl, 0)), np.square))
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(FixedLocator(DIVERGENCES))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())
