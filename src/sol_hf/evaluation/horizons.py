# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What a policy gains in texts of several episodes, by the horizon over which its budget is kept.

    text     | context: dense | episode | episode | ... | episode |        as `score` computes it, KV refresh included

The policy is compared with the fixed schedule at the means that it spent on these texts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..budget.budget import Budget
from ..controllers.fixed import FixedController
from ..decoding.outputs import SOLScoreOutput
from ..modeling_sol import SOLForCausalLM
from .clusters import mean_and_error
from .policy_evaluation import check_budgets
from .settings import compare_scores


WAYS: dict[str, dict[str, Any]] = {
    "generation": dict(budget_horizon="generation"),
    "exact": dict(exact=True),
    "episode": dict(budget_horizon="episode"),
    "soft": dict(budget_mode="soft"),
}
"""Ways to keep a budget, as options of `generate`."""


@dataclass(frozen=True)
class HorizonQuality:
    """A policy at one budget, kept in one way, with standard errors over texts.

    Args:
        budget (`dict[str, float]`): Targets, in axis units.
        way (`str`): One of `WAYS`.
        spent (`dict[str, float]`): Means over texts, of all axes.
        distance (`float`): Mean over texts and controlled axes of the distance of `realised` from the target, in
            ratio units.
        divergence (`tuple[float, float]`): KL(dense ‖ policy) in nats per token, and its error.
        fixed (`tuple[float, float]`): The same of the fixed schedule at what was spent.
        difference (`tuple[float, float]`): The first minus the second, paired by text.
    """

    budget: dict[str, float]
    way: str
    spent: dict[str, float]
    distance: float
    divergence: tuple[float, float]
    fixed: tuple[float, float]
    difference: tuple[float, float]


def measure_horizons(
    model: SOLForCausalLM,
    texts: torch.LongTensor,
    context_length: int,
    budgets: Sequence[Sequence[float]],
    ways: Sequence[str] = tuple(WAYS),
    documents: Sequence[int] | None = None,
) -> list[HorizonQuality]:
    """Play a policy at every budget and in every way on the same texts, and the fixed schedule at what it spent.

    Args:
        model ([`SOLForCausalLM`]): Base and policy.
        texts (`torch.LongTensor` of shape `(texts, context_length + steps + 1)`): Token ids, at least 2 rows.
        context_length (`int`): Tokens that are processed densely.
        budgets (`Sequence` of `Sequence[float]`): One number per axis, in axis units; the dense value leaves an axis
            out.
        ways (`Sequence[str]`, *optional*): Of `WAYS`; all by default.
        documents (`Sequence[int]`, *optional*): The document of every text, for standard errors.

    Raises:
        ValueError: for an unknown way, or a budget that cannot be met.
    """
    unknown = [way for way in ways if way not in WAYS]
    if unknown:
        raise ValueError(f"Unknown ways to keep a budget: {', '.join(unknown)}. There are {', '.join(WAYS)}.")
    check_budgets(budgets, model.action_space)
    score: dict[str, Any] = dict(context_length=context_length, return_logits=True)
    dense, results = model.score(texts, **score), []
    for numbers in budgets:
        named = zip(model.action_space.axes, numbers, strict=True)
        budget = {axis.name: float(number) for axis, number in named if number != axis.dense}
        for way in ways:
            output = model.score(texts, budget=Budget.of(budget), **WAYS[way], **score)
            results.append(_compared(model, texts, score, dense, output, budget, way, documents))
    return results


def _compared(
    model: SOLForCausalLM,
    texts: torch.LongTensor,
    score: dict[str, Any],
    dense: SOLScoreOutput,
    output: SOLScoreOutput,
    budget: dict[str, float],
    way: str,
    documents: Sequence[int] | None,
) -> HorizonQuality:
    space, realised = model.action_space, output.realised
    assert realised is not None, "scores have it"
    spent = {axis.name: float(x) for axis, x in zip(space.axes, realised.double().mean(dim=0), strict=True)}
    means = {axis.name: min(spent[axis.name], axis.dense) for axis in space.axes if axis.name in budget}
    schedule = FixedController(carry=space.axis_names, across_rows=False)
    fixed = model.score(texts, budget=Budget.of(means), budget_mode="soft", controller=schedule, **score)
    losses = [compare_scores(dense, x)[..., 0].mean(dim=1).numpy() for x in (output, fixed)]
    columns = [mean_and_error(x[:, None], documents) for x in (*losses, losses[0] - losses[1])]
    pairs = [(float(mean[0]), float(error[0])) for mean, error in columns]
    targets = Budget.of(budget).targets(len(realised), realised.device, space)
    controlled = [axis.name in budget for axis in space.axes]
    distance = (realised / space.scales.to(realised) - targets).abs()[:, controlled].mean()
    return HorizonQuality(budget, way, spent, float(distance), *pairs)


def horizons_table(results: Sequence[HorizonQuality]) -> str:
    """The results as a table in Markdown."""
    lines = ["| budget | kept over | spent | distance | KL | fixed | difference |", "|---|---|---|---|---|---|---|"]
    for result in results:
        asked = " / ".join(f"{value:g}" for value in result.budget.values())
        spent = " / ".join(f"{result.spent[name]:.3g}" for name in result.budget)
        (kl, _), (fixed, _), (difference, error) = result.divergence, result.fixed, result.difference
        lines.append(
            f"| {asked} | {result.way} | {spent} | {result.distance:.4f} | {kl:.4f} | {fixed:.4f} | "
            f"{difference:+.4f} ± {error:.4f} |"
        )
    return "\n".join(lines)
