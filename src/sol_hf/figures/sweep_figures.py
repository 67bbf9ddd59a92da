# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Figures of a sweep, from tables that `read_table` returns, or from lists of dictionaries.

`save_figure` writes the figures. No window is opened, and the state of `matplotlib.pyplot` is not changed.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from ..evaluation.sweep.table import REALISED, TARGET
from .axis_labels import is_integral, ratio_term
from .style import LOOKS, checked_rows, family, looks_of, styled
from .sweep_points import (
    BudgetValues,
    Point,
    Rows,
    budget_of,
    checked_sweep,
    front_of,
    paired_gains,
    points_of,
)


NUMBERED_LABELS = {"random": "random, best of {}", "oracle": "oracle, {} later steps"}
"""Labels of controllers of a sweep whose number has a special meaning."""
POINT_COLUMNS = ("controller", "net_keep", "log_perplexity", "log_perplexity_error")


def label_of(controller: str) -> str:
    """The label of a controller in a legend; by default its name, with its number if there is one."""
    name, _, number = controller.partition(":")
    return NUMBERED_LABELS[name].format(number) if number and name in NUMBERED_LABELS else controller


def net_keep_label(axes: Sequence[str]) -> str:
    """The label of the net keep rate, which names its terms."""
    *terms, last = map(ratio_term, axes)
    return f"net keep: mean of {', '.join(terms)} and {last}, as spent" if terms else f"net keep: {last}, as spent"


@styled
def plot_pareto(rows: Rows, blocks: Rows = ()) -> Figure:
    """Plot perplexity against net keep with a front per controller; below, the gain over `fixed` at the same budget.

    Points on the front of their controller are filled and connected. Bars are standard errors over blocks. In the
    lower panel they are those of the paired differences and need `blocks`.

    Args:
        rows: The table `sweep`: `controller`, `seed`, the axes, `net_keep`, `log_perplexity`, `log_perplexity_error`.
        blocks (*optional*): The table `blocks`: `controller`, `seed`, the axes, `losses`.

    Returns:
        `matplotlib.figure.Figure`

    Raises:
        ValueError: if the table is empty or lacks a column.
    """
    table, axes = checked_sweep(rows, POINT_COLUMNS)
    points = points_of(table, axes)
    compared = [name for name in points if family(name) not in ("fixed", "dense")]
    with_gains = bool(compared) and "fixed" in points
    figure = Figure(figsize=(6.4, 6.4 if with_gains else 4.2), layout="constrained")
    if with_gains:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        _draw_gains(bottom, points, compared, paired_gains(blocks, axes))
    else:
        top = bottom = figure.subplots()
    looks = looks_of(points)
    for name, some in points.items():
        if family(name) == "dense":
            level = math.exp(some[0].log_perplexity)
            top.axhline(level, color=looks[name].color, linewidth=1, linestyle=":", label="dense")
            continue
        front, color, marker = front_of(some), *looks[name]
        x, y = [point.net_keep for point in front], [math.exp(point.log_perplexity) for point in front]
        top.plot(x, y, color=color, marker=marker, linewidth=1.3, label=label_of(name))
        for point in some:
            value = math.exp(point.log_perplexity)
            bars = [[value - math.exp(point.log_perplexity - point.error)]]
            bars.append([math.exp(point.log_perplexity + point.error) - value])
            fill = color if point in front else "white"
            style = dict(color=color, markerfacecolor=fill, ecolor=to_rgba(color, 0.4), elinewidth=1)
            top.errorbar([point.net_keep], [value], bars, fmt=marker, **style)
    _label_log_axis(top)
    top.set_ylabel("perplexity")
    top.legend()
    bottom.set_xlabel(net_keep_label(axes))
    return figure


def _draw_gains(
    axes: Axes,
    points: dict[str, list[Point]],
    compared: list[str],
    paired: dict[tuple[str, BudgetValues], tuple[float, float]],
) -> None:
    fixed, looks = {point.budget: point for point in points["fixed"]}, looks_of(points)
    for name in compared:
        some = [point for point in points[name] if point.budget in fixed]
        unpaired = [(fixed[point.budget].log_perplexity - point.log_perplexity, 0.0) for point in some]
        pairs = [paired.get((name, point.budget), pair) for point, pair in zip(some, unpaired, strict=True)]
        x, y, bars = [point.net_keep for point in some], [gain for gain, _ in pairs], [error for _, error in pairs]
        color, marker = looks[name]
        axes.errorbar(x, y, bars, fmt=marker, color=color, ecolor=to_rgba(color, 0.4), elinewidth=1)
    axes.axhline(0, color=looks["fixed"].color, linewidth=1)
    axes.set_ylabel("gain over fixed\n(nats a token)")


def _label_log_axis(axes: Axes) -> None:
    """Give a logarithmic y axis plain numbers as labels."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 1.5, 2, 3, 4, 5, 7)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


@styled
def plot_realised(rows: Rows) -> Figure:
    """Plot target and realised mean of every controller, in a panel per axis with the diagonal.

    Args:
        rows: The table `sweep`: `controller`, `target_*` and `realised_*` of the axes.

    Returns:
        `matplotlib.figure.Figure`

    Raises:
        ValueError: if the table is empty or lacks a column.
    """
    found, names = checked_sweep(rows, ("controller",), (TARGET, REALISED))
    table = [row for row in found if family(row["controller"]) != "dense"]
    looks = looks_of(row["controller"] for row in table)
    figure = Figure(figsize=(1.5 + 2.5 * len(names), 2.8), layout="constrained")
    for axes, axis in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        values = [row[f"{kind}{axis}"] for row in table for kind in (TARGET, REALISED)]
        margin = 0.05 * (max(values) - min(values)) or 0.05
        limits = (min(values) - margin, max(values) + margin)
        axes.axline((limits[0], limits[0]), slope=1, color="black", linewidth=0.8)
        for name, (color, marker) in looks.items():
            own = [row for row in table if row["controller"] == name]
            x, y = ([row[f"{kind}{axis}"] for row in own] for kind in (TARGET, REALISED))
            axes.plot(x, y, marker, color=color, markerfacecolor="none", label=label_of(name))
        axes.set(xlim=limits, ylim=limits, aspect="equal", title=axis, xlabel="asked for")
        for side in (axes.xaxis, axes.yaxis):
            side.set_major_locator(MaxNLocator(5, integer=is_integral(axis)))
    figure.axes[0].set_ylabel("spent")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center")
    return figure


@styled
def plot_random_search(rows: Rows, trials: Rows) -> Figure:
    """Plot violins of the losses of all random schedules at every budget, and the other controllers next to them.

    Log-perplexities are relative to the mean of the trials, so that all budgets fit on one axis.

    Args:
        rows: The table `sweep`: `controller`, the axes, `net_keep`, `log_perplexity`, `log_perplexity_error`.
        trials: The table `trials`: the axes and `log_perplexity` of every random schedule.

    Returns:
        `matplotlib.figure.Figure`

    Raises:
        ValueError: if a table is empty or lacks a column, or a budget has less than two trials.
    """
    table, names = checked_sweep(rows, POINT_COLUMNS)
    points = points_of(table, names)
    tried: dict[BudgetValues, list[float]] = defaultdict(list)
    for row in checked_rows(trials, (*names, "log_perplexity"), "table `trials`"):
        tried[budget_of(row, names)].append(row["log_perplexity"])
    few = [budget for budget, values in tried.items() if len(values) < 2]
    if few:
        raise ValueError(
            f"A violin needs two random trials or more, budget {few[0]} has one: sweep with `random:100`."
        )
    spent = {point.budget: point.net_keep for some in points.values() for point in some}
    budgets = sorted(tried, key=lambda budget: spent.get(budget, math.inf))
    means = {budget: math.fsum(tried[budget]) / len(tried[budget]) for budget in budgets}
    figure = Figure(figsize=(max(4.8, 1.0 + 0.75 * len(budgets)), 4.4), layout="constrained")
    axes, looks, grey = figure.subplots(), looks_of(points), LOOKS["random"].color
    relative = [[value - means[budget] for value in tried[budget]] for budget in budgets]
    bodies: Any = axes.violinplot(relative, range(len(budgets)), widths=0.75, showextrema=False)["bodies"]
    for body in bodies:
        body.set(facecolor=grey, edgecolor="none", alpha=0.35)
    count = max(map(len, relative))
    axes.plot(range(len(budgets)), [min(values) for values in relative], "_", color=grey, markersize=12)
    axes.lines[-1].set_label(f"best of {count} random")
    for name in (name for name in points if family(name) not in ("random", "dense")):
        found = {
            budgets.index(p.budget): p.log_perplexity - means[p.budget] for p in points[name] if p.budget in means
        }
        color, marker = looks[name]
        axes.plot(list(found), list(found.values()), marker, color=color, label=label_of(name))
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set_xticks(range(len(budgets)), ["\n".join(f"{value:g}" for value in budget) for budget in budgets])
    axes.set_xlabel(f"budget: {', '.join(names)}")
    axes.set_ylabel("log-perplexity, relative to the mean\nof the random schedules (nats a token)")
    axes.grid(False, axis="x")
    figure.legend(loc="outside upper center", ncols=4)
    return figure
