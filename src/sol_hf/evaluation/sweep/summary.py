# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Summary of a sweep's tables: fronts, comparisons of the policy with the other controllers, and share of the gap.

Intervals hold 95% of the resamples of a paired bootstrap over the documents: all controllers are compared on the same
blocks, and blocks of one document are drawn together.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from ...budget.axes import AXES
from ..clusters import RESAMPLES, TAILS, resampled_means
from .fronts import hypervolume, pareto_front
from .table import axes_of, key_of


DENSE_FIGURES = ("perplexity", "log_perplexity", "bytes_per_token", "flops_per_token")

Row = dict[str, Any]


def summarize_sweep(sweep: Dataset, blocks: Dataset, seed: int = 0) -> dict[str, Any]:
    """Summarize a sweep.

    Args:
        sweep (`Dataset`): The table `sweep`.
        blocks (`Dataset`): The table `blocks` of the same sweep.
        seed (`int`, *optional*, defaults to 0): Of the bootstrap.

    Returns:
        `dict[str, Any]`: Values for JSON; `docs/pareto.md` explains the entries.
    """
    axes = axes_of(sweep.column_names)
    key = key_of(axes)
    rows: list[Row] = [dict(row) for row in sweep]
    per_block = {tuple(row[name] for name in key): row for row in (dict(row) for row in blocks)}
    for row in rows:
        found = per_block[tuple(row[name] for name in key)]
        row["losses"], row["divergences"] = np.array(found["losses"]), np.array(found["divergences"])
        row["documents"] = found.get("documents")
    dense = next(row for row in rows if row["controller"] == "dense")
    others = [row for row in rows if row is not dense]
    reference = (1.0, max(row["log_perplexity"] for row in rows))
    names = list(dict.fromkeys(row["controller"] for row in others))
    by_name = {name: [row for row in others if row["controller"] == name] for name in names}
    summary = {
        "blocks": dense["blocks"],
        "tokens": dense["tokens"],
        "budgets": len({_budget(row, axes) for row in others}),
        "dense": {name: dense[name] for name in DENSE_FIGURES},
        "reference": {"net_keep": reference[0], "log_perplexity": reference[1]},
        "controllers": {name: _describe(by_name[name], axes, reference) for name in names},
    }
    if "policy" in by_name:
        summary["policy_against"] = {
            name: compare(by_name["policy"], by_name[name], axes, seed) for name in names if name != "policy"
        }
        if "fixed" in by_name:
            oracles = [name for name in names if name.startswith("oracle")]
            args = by_name["policy"], by_name["fixed"]
            summary["gap_closed"] = {name: gap_closed(*args, by_name[name], seed) for name in oracles}
    return summary


def front_of(rows: list[Row]) -> list[Row]:
    """Rows on the front of net keep and log-perplexity, by ascending net keep.

    Args:
        rows (`list[dict]`): Of one controller.
    """
    return [rows[index] for index in pareto_front([(row["net_keep"], row["log_perplexity"]) for row in rows])]


def _describe(rows: list[Row], axes: Sequence[str], reference: tuple[float, float]) -> dict[str, Any]:
    """Numbers of one controller."""
    points = [(row["net_keep"], row["log_perplexity"]) for row in rows]
    errors = {axis: [abs(row[f"realised_{axis}"] - row[f"target_{axis}"]) for row in rows] for axis in axes}
    means = ("net_keep", "log_perplexity", "divergence", "bytes_per_token", "flops_per_token")
    return {
        "rows": len(rows),
        "hypervolume": hypervolume(points, reference),
        **{name: float(np.mean([row[name] for row in rows])) for name in means},
        "budget_error": {axis: float(np.mean(values)) for axis, values in errors.items()},
        "front": [{name: row[name] for name in ("net_keep", *axes, "log_perplexity")} for row in front_of(rows)],
    }


def compare(policy: list[Row], other: list[Row], axes: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """Compare the policy with another controller, at every budget and for every seed of the other.

    Args:
        policy (`list[dict]`): Rows of the policy, with `losses` of the blocks.
        other (`list[dict]`): Rows of the other.
        axes (`Sequence[str]`): Names of the axes, whose columns hold the budget.
        seed (`int`, *optional*, defaults to 0): Of the bootstrap.

    Returns:
        `dict[str, Any]`: The mean `gain` of the policy in nats per token and its `win_rate`, both with an `_interval`,
        the `tie_rate` (a tie is no win), and the points with the largest and the smallest gain.
    """
    own = {_budget(row, axes): row for row in policy}
    differences = np.stack([row["losses"] - own[_budget(row, axes)]["losses"] for row in other])
    drawn = resampled_means(differences, RESAMPLES, seed, policy[0].get("documents"))
    gains = differences.mean(axis=1)
    return {
        "comparisons": len(other),
        "gain": float(gains.mean()),
        "gain_interval": _interval(drawn.mean(axis=1)),
        "win_rate": float((gains > 0).mean()),
        "win_rate_interval": _interval((drawn > 0).mean(axis=1)),
        "tie_rate": float((gains == 0).mean()),
        "best": _point(other[int(gains.argmax())], axes, float(gains.max())),
        "worst": _point(other[int(gains.argmin())], axes, float(gains.min())),
    }


def gap_closed(policy: list[Row], fixed: list[Row], oracle: list[Row], seed: int = 0) -> dict[str, Any]:
    """Share of the gap between the fixed schedule and the oracle that the policy closes, summed over the budgets.

    Args:
        policy (`list[dict]`): Rows of the policy, with `losses` and `divergences` of the blocks.
        fixed (`list[dict]`): Of the fixed schedule, at the same budgets.
        oracle (`list[dict]`): Of the oracle, at the same budgets.
        seed (`int`, *optional*, defaults to 0): Of the bootstrap.

    Returns:
        `dict[str, Any]`: Per measure (`divergence`, which the oracle minimizes, and `log_perplexity`) the `gap` in
        nats per token, the `share` of it and its `interval`; no share if the oracle is not better than the fixed
        schedule.
    """
    found: dict[str, Any] = {}
    for measure, column in (("divergence", "divergences"), ("log_perplexity", "losses")):
        sums = np.stack([np.mean([row[column] for row in rows], axis=0) for rows in (policy, fixed, oracle)])
        drawn = resampled_means(sums, RESAMPLES, seed, policy[0].get("documents"))
        mean_policy, mean_fixed, mean_oracle = sums.mean(axis=1)
        gap = float(mean_fixed - mean_oracle)
        found[measure] = {"gap": gap}
        if gap > 0:
            shares = (drawn[:, 1] - drawn[:, 0]) / (drawn[:, 1] - drawn[:, 2])
            found[measure] |= {"share": float((mean_fixed - mean_policy) / gap), "interval": _interval(shares)}
    return found


def _budget(row: Row, axes: Sequence[str]) -> tuple[float, ...]:
    return tuple(row[axis] for axis in axes)


def _interval(values: np.ndarray) -> list[float]:
    return [float(x) for x in np.percentile(values, TAILS)]


def _point(row: Row, axes: Sequence[str], gain: float) -> dict[str, Any]:
    return {axis: row[axis] for axis in axes} | {"net_keep": row["net_keep"], "gain": gain}


def format_summary(summary: dict[str, Any]) -> str:
    """A summary as Markdown: a table with one line per controller, and remarks below it.

    Args:
        summary (`dict[str, Any]`): From [`summarize_sweep`].
    """
    columns = ["controller", "net keep", "perplexity", "KL (nats)", "hypervolume", "GB / token", "GFLOP / token"]
    columns += ["budget error", "policy's gain (nats)", "policy wins"]
    lines = [columns, ["---"] * len(columns), [*_dense_cells(summary["dense"]), *["–"] * 3]]
    against = summary.get("policy_against", {})
    for name, own in summary["controllers"].items():
        versus = against.get(name)
        error = own["budget_error"]
        lines.append(
            [
                *[f"`{name}`", f"{own['net_keep']:.3f}", f"{np.exp(own['log_perplexity']):.3f}"],
                *[f"{own['divergence']:.4f}", f"{own['hypervolume']:.4f}"],
                *[f"{own['bytes_per_token'] / 1e9:.3g}", f"{own['flops_per_token'] / 1e9:.3g}"],
                " / ".join(f"{value:.{_digits(axis)}f}" for axis, value in error.items()),
                "–" if versus is None else f"{versus['gain']:+.4f} {_between(versus['gain_interval'], '+.4f')}",
                "–" if versus is None else _wins(versus),
            ]
        )
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([table, "", *_remarks(summary)])


def _digits(axis: str) -> int:
    """Decimals of a number on an axis; an axis that is not registered here counts as a fraction."""
    return 2 if axis in AXES and AXES[axis].is_integral else 3


def _dense_cells(dense: dict[str, float]) -> list[str]:
    costs = [f"{dense['bytes_per_token'] / 1e9:.3g}", f"{dense['flops_per_token'] / 1e9:.3g}"]
    return ["`dense`", "1.000", f"{dense['perplexity']:.3f}", "0", "–", *costs]


def _wins(versus: dict[str, Any]) -> str:
    ties = f", ties {versus['tie_rate']:.0%}" if versus["tie_rate"] else ""
    return f"{versus['win_rate']:.0%} {_between(versus['win_rate_interval'], '.0%')}{ties}"


def _between(interval: list[float], shape: str) -> str:
    return f"[{interval[0]:{shape}}, {interval[1]:{shape}}]"


def _remarks(summary: dict[str, Any]) -> list[str]:
    lines = []
    for name, found in summary.get("gap_closed", {}).items():
        for measure, figures in found.items():
            if "share" not in figures:
                lines.append(f"- `{name}` is not better than `fixed` in {measure}: there is no gap to close.")
                continue
            share = f"{figures['share']:.0%} {_between(figures['interval'], '.0%')}"
            between = f"that lie between `fixed` and `{name}`"
            lines.append(f"- The policy closes {share} of the {figures['gap']:.4f} nats of {measure} {between}.")
    fixed = summary.get("policy_against", {}).get("fixed")
    for word in ("best", "worst") if fixed else ():
        point = fixed[word]
        budget = ", ".join(f"{value:g}" for name, value in point.items() if name not in ("net_keep", "gain"))
        lines.append(f"- The policy's {word} budget against `fixed` is ({budget}): {point['gain']:+.4f} nats.")
    lines.append(f"- {summary['budgets']} budgets, {summary['blocks']} blocks, {summary['tokens']} tokens each.")
    return lines
