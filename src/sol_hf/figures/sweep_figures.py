# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Figures of a sweep. They take tables as `read_table` gives them, or lists of dictionaries.

`save_figure` writes what they return. Nothing here opens a window or touches the state of `matplotlib.pyplot`.
"""

import math
from collections import defaultdict
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from ..budget.action_space import AXES
from .style import LOOKS, checked_rows, family, looks_of, styled
from .sweep_points import Point, Rows, Triple, budget_of, front_of, paired_gains, points_of


NET_KEEP_LABEL = "net keep: mean of token_keep, mlp_keep and bits / 16, as spent"


def label_of(controller: str) -> str:
    """How a legend names a controller."""
    name, _, number = controller.partition(":")
    return {"random": f"random, best of {number}", "oracle": f"oracle, {number} ahead"}[name] if number else name


@styled
def plot_pareto(rows: Rows, blocks: Rows = ()) -> Figure:
    """Perplexity against net keep with a front per controller; below, the gain over `fixed` at the same budget.

    Points on the front of their controller are filled and joined. Bars are standard errors over blocks; below they are
    of the paired differences and need `blocks`.

    Args:
        rows: The table `sweep`: `controller`, `seed`, the axes, `net_keep`, `log_perplexity`, `log_perplexity_error`.
        blocks (*optional*): The table `blocks`: `controller`, `seed`, the axes, `losses`.

    Returns:
        `matplotlib.figure.Figure`

    Raises:
        ValueError: if the table is empty or lacks a column.
    """
    columns = ("controller", *AXES, "net_keep", "log_perplexity", "log_perplexity_error")
    points = points_of(checked_rows(rows, columns, "table `sweep`"))
    compared = [name for name in points if family(name) not in ("fixed", "dense")]
    with_gains = bool(compared) and "fixed" in points
    figure = Figure(figsize=(6.4, 6.4 if with_gains else 4.2), layout="constrained")
    if with_gains:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        _draw_gains(bottom, points, compared, paired_gains(blocks))
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
    bottom.set_xlabel(NET_KEEP_LABEL)
    return figure


def _draw_gains(
    axes: Axes,
    points: dict[str, list[Point]],
    compared: list[str],
    paired: dict[tuple[str, Triple], tuple[float, float]],
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
    """A logarithmic y axis with plain numbers on it."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 1.5, 2, 3, 4, 5, 7)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


@styled
def plot_realised(rows: Rows) -> Figure:
    """What every controller was asked for and what it spent: a panel per axis, with the diagonal.

    Args:
        rows: The table `sweep`: `controller`, `target_*` and `realised_*` of the axes.

    Returns:
        `matplotlib.figure.Figure`

    Raises:
        ValueError: if the table is empty or lacks a column.
    """
    columns = ["controller", *(f"{kind}_{axis}" for kind in ("target", "realised") for axis in AXES)]
    table = [row for row in checked_rows(rows, columns, "table `sweep`") if family(row["controller"]) != "dense"]
    looks = looks_of(row["controller"] for row in table)
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    for axes, axis in zip(figure.subplots(1, 3), AXES, strict=True):
        values = [row[f"{kind}_{axis}"] for row in table for kind in ("target", "realised")]
        margin = 0.05 * (max(values) - min(values)) or 0.05
        limits = (min(values) - margin, max(values) + margin)
        axes.axline((limits[0], limits[0]), slope=1, color="black", linewidth=0.8)
        for name, (color, marker) in looks.items():
            own = [row for row in table if row["controller"] == name]
            x, y = ([row[f"{kind}_{axis}"] for row in own] for kind in ("target", "realised"))
            axes.plot(x, y, marker, color=color, markerfacecolor="none", label=label_of(name))
        axes.set(xlim=limits, ylim=limits, aspect="equal", title=axis, xlabel="asked for")
        for side in (axes.xaxis, axes.yaxis):
            side.set_major_locator(MaxNLocator(5, integer=axis == "bits"))
    figure.axes[0].set_ylabel("spent")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center")
    return figure


@styled
def plot_random_search(rows: Rows, trials: Rows) -> Figure:
    """Violins of all random schedules that were tried at every budget, with the other controllers beside them.

    Log-perplexities are relative to the mean of the trials, so that budgets can share an axis.

    Args:
        rows: The table `sweep`: `controller`, the axes, `net_keep`, `log_perplexity`, `log_perplexity_error`.
        trials: The table `trials`: the axes and `log_perplexity` of every schedule that was tried.

    Returns:
        `matplotlib.figure.Figure`

    Raises:
        ValueError: if a table is empty or lacks a column, or a budget has less than two trials.
    """
    columns = ("controller", *AXES, "net_keep", "log_perplexity", "log_perplexity_error")
    points = points_of(checked_rows(rows, columns, "table `sweep`"))
    tried: dict[Triple, list[float]] = defaultdict(list)
    for row in checked_rows(trials, (*AXES, "log_perplexity"), "table `trials`"):
        tried[budget_of(row)].append(row["log_perplexity"])
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
    axes.set_xticks(range(len(budgets)), ["{:g}\n{:g}\n{:g}".format(*budget) for budget in budgets])
    axes.set_xlabel("budget: token_keep, mlp_keep, bits")
    axes.set_ylabel("log-perplexity, relative to the mean\nof the random schedules (nats a token)")
    axes.grid(False, axis="x")
    figure.legend(loc="outside upper center", ncols=4)
    return figure
