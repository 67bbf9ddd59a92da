# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What a policy gains in texts of several episodes, by the horizon over which its budget is kept.

    text     | context: dense | episode | episode | ... | episode |        as `score` computes it, KV refresh included

The policy is compared with the fixed schedule at the means that it spent on these texts: a [`Contest`] for every way.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..episodes.block_runner import contexts_of
from ..modeling_sol import SOLForCausalLM
from .clusters import mean_and_error
from .policy_evaluation import FIXED
from .sweep.contest import Contest, SweepConfig
from .sweep.entries import POLICY
from .sweep.rows import SweepRow


WAYS: dict[str, dict[str, Any]] = {
    "generation": dict(hard=True, budget_horizon="generation"),
    "exact": dict(hard=True, budget_horizon="generation", exact=True),
    "episode": dict(hard=True, budget_horizon="episode"),
    "soft": dict(hard=False),
}
"""Ways to keep a budget, as settings of a [`SweepConfig`]."""


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
    context_length: int | Sequence[int],
    budgets: Sequence[Sequence[float]],
    ways: Sequence[str] = tuple(WAYS),
    documents: Sequence[int] | None = None,
) -> list[HorizonQuality]:
    """Play a policy at every budget and in every way on the same texts, and the fixed schedule at what it spent.

    Args:
        model ([`SOLForCausalLM`]): Base and policy.
        texts (`torch.LongTensor` of shape `(texts, longest context + steps + 1)`): Token ids, at least 2 rows.
        context_length (`int`, or one per text): Tokens that are processed densely.
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
    distinct = tuple(dict.fromkeys(tuple(map(float, numbers)) for numbers in budgets))
    contexts = contexts_of(context_length, len(texts))
    length: dict[str, Any] = dict(context_length=contexts, steps=texts.shape[-1] - max(contexts) - 1)
    contests = [Contest(model, texts, SweepConfig((POLICY, FIXED), distinct, **length, **WAYS[way])) for way in ways]
    found = []
    for way, contest in zip(ways, contests, strict=True):
        _, *rows = contest.rows()
        for place, budget in enumerate(distinct):
            policy, fixed = (row for row in rows if row.budget == budget)
            found.append((place, _quality(policy, fixed, way, documents)))
    return [quality for _, quality in sorted(found, key=lambda pair: pair[0])]


def _quality(policy: SweepRow, fixed: SweepRow, way: str, documents: Sequence[int] | None) -> HorizonQuality:
    """What a policy did at one budget, and the fixed schedule at what it spent."""
    space, target = policy.space, policy.target.double()
    named = zip(space.axes, policy.budget, strict=True)
    budget = {axis.name: float(number) for axis, number in named if number != axis.dense}
    spent = zip(space.axis_names, (policy.realised * space.scales).tolist(), strict=True)
    controlled = [axis.name in budget for axis in space.axes]
    losses = [row.divergence.numpy()[:, None] for row in (policy, fixed)]
    columns = [mean_and_error(x, documents) for x in (*losses, losses[0] - losses[1])]
    pairs = [(float(mean[0]), float(error[0])) for mean, error in columns]
    distance = (policy.of_blocks - target).abs()[:, controlled].mean()
    return HorizonQuality(budget, way, dict(spent), float(distance), *pairs)


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
