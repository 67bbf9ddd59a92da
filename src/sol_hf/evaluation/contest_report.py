# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What a policy is worth against other contestants at the same cost: KL and losses, with intervals over documents.

Everything is paired: all contestants play the same texts, and documents are resampled for all of them together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .clusters import RESAMPLES, TAILS, interval_of, ratio_and_interval, resampled_means, standard_error
from .policy_evaluation import FIXED, BudgetEvaluation


ORACLE = "oracle"


@dataclass(frozen=True)
class Comparison:
    """The policy against another contestant, at one budget or over several; KL in nats per token.

    Args:
        name (`str`): The contestant.
        divergence (`float`): KL(dense ‖ policy).
        other (`float`): KL(dense ‖ contestant).
        difference (`tuple` of 4 `float`): The first minus the second, its standard error, and its 95% interval.
        ratio (`tuple` of 3 `float`): The first over the second, and its 95% interval.
        gain (`tuple` of 2 `float`): Loss of the contestant minus that of the policy, and its standard error.
        better (`int`): Budgets at which the policy has less KL.
        budgets (`int`): Budgets.
    """

    name: str
    divergence: float
    other: float
    difference: tuple[float, float, float, float]
    ratio: tuple[float, float, float]
    gain: tuple[float, float]
    better: int
    budgets: int


def compare_with(evaluations: Sequence[BudgetEvaluation], name: str) -> Comparison:
    """The policy against a contestant, over the means of all budgets.

    Args:
        evaluations (`Sequence[BudgetEvaluation]`): One or more, from [`evaluate_budgets`].
        name (`str`): Name of a contestant, such as `fixed`.

    Raises:
        ValueError: if it did not take part.
    """
    pairs = []
    for evaluation in evaluations:
        there = {opponent.name: opponent for opponent in evaluation.opponents}
        if name not in there or evaluation.divergences is None:
            raise ValueError(f"{name!r} did not take part: it must be one of {', '.join(there) or 'none'}.")
        pairs.append((evaluation, there[name]))
    documents = evaluations[0].documents
    own, theirs = (np.array(x) for x in zip(*((a.divergences, b.divergences) for a, b in pairs), strict=True))
    gains = np.array([np.array(b.losses) - np.array(a.losses) for a, b in pairs]).mean(axis=0)
    difference = (own - theirs).mean(axis=0)
    return Comparison(
        name=name,
        divergence=float(own.mean()),
        other=float(theirs.mean()),
        difference=(
            float(difference.mean()),
            standard_error(difference, documents),
            *interval_of(difference, documents),
        ),
        ratio=ratio_and_interval(own.mean(axis=0), theirs.mean(axis=0), documents),
        gain=(float(gains.mean()), standard_error(gains, documents)),
        better=int((own.mean(axis=1) < theirs.mean(axis=1)).sum()),
        budgets=len(pairs),
    )


def gap_share(evaluations: Sequence[BudgetEvaluation], oracle: str = ORACLE) -> tuple[float, float, float] | None:
    """The share of the KL between the fixed schedule and the oracle that the policy closes, and its 95% interval.

    Args:
        evaluations (`Sequence[BudgetEvaluation]`): From [`evaluate_budgets`], with the oracle among the others.
        oracle (`str`, *optional*, defaults to `"oracle"`): Its name, such as `oracle:4`.

    Returns:
        `tuple` of 3 `float`, or `None` if the oracle is not better than the fixed schedule.
    """
    known = [{other.name: other.divergences for other in evaluation.opponents} for evaluation in evaluations]
    own = np.mean([evaluation.divergences or () for evaluation in evaluations], axis=0)
    fixed, best = (np.mean([of[name] for of in known], axis=0) for name in (FIXED, oracle))
    if fixed.mean() <= best.mean():
        return None
    drawn = resampled_means(np.stack([own, fixed, best]), RESAMPLES, 0, evaluations[0].documents)
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = (drawn[:, 1] - drawn[:, 0]) / (drawn[:, 1] - drawn[:, 2])
    share = (fixed.mean() - own.mean()) / (fixed.mean() - best.mean())
    low, high = np.percentile(shares, TAILS)
    return float(share), float(low), float(high)


def divergence_table(evaluations: Sequence[BudgetEvaluation]) -> str:
    """KL(dense ‖ sparse) of all contestants as a table in Markdown, one line per budget, and what it says in all.

    Args:
        evaluations (`Sequence[BudgetEvaluation]`): From [`evaluate_budgets`].
    """
    names = [opponent.name for opponent in evaluations[0].opponents]
    columns = ["requested", "KL of policy", *names, f"policy / {FIXED}", f"policy - {FIXED}", "loss above dense"]
    lines = [[*columns, "distance", "above t + (max - t) / N"], ["---"] * (len(columns) + 2)]
    for evaluation in evaluations:
        asked = " / ".join(f"{value:.3g}" for value in evaluation.requested)
        others = [f"{np.mean(other.divergences):.4f}" for other in evaluation.opponents]
        found = compare_with([evaluation], FIXED)
        (ratio, low, high), (difference, error, *_) = found.ratio, found.difference
        dense = evaluation.dense_losses
        above = "–" if dense is None else f"{np.mean(evaluation.losses) - np.mean(dense):+.4f}"
        cells = [asked, f"{found.divergence:.4f}", *others, f"{ratio:.3f} [{low:.3f}, {high:.3f}]"]
        cells += [f"{difference:+.4f} ± {error:.4f}", above, f"{evaluation.distance:.4f}"]
        lines.append([*cells, f"{evaluation.above_guarantee:+.4f}"])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([table, "", *_remarks(evaluations, names)])


def _remarks(evaluations: Sequence[BudgetEvaluation], names: Sequence[str]) -> list[str]:
    lines = []
    for name in names:
        found = compare_with(evaluations, name)
        (ratio, low, high), (difference, error, below, above) = found.ratio, found.difference
        lines.append(
            f"- Against `{name}`: KL {found.divergence:.4f} to {found.other:.4f}, ratio {ratio:.3f} "
            f"[{low:.3f}, {high:.3f}], difference {difference:+.4f} ± {error:.4f} [{below:+.4f}, {above:+.4f}]; less "
            f"at {found.better} of {found.budgets} budgets. Gain in loss {found.gain[0]:+.4f} ± {found.gain[1]:.4f}."
        )
    for name in (name for name in names if name.partition(":")[0] == ORACLE):
        share = gap_share(evaluations, name)
        if share is None:
            lines.append(f"- `{name}` is not better than `{FIXED}`: there is no gap to close.")
            continue
        lines.append(
            f"- Share of the gap from `{FIXED}` to `{name}`: {share[0]:.2f} [{share[1]:.2f}, {share[2]:.2f}]."
        )
    distance = np.mean([evaluation.distance for evaluation in evaluations])
    worst = max(evaluation.above_guarantee or 0.0 for evaluation in evaluations)
    lines.append(f"- Distance of means from targets {distance:.4f}; worst above t + (max - t) / N {worst:+.4f}.")
    documents, texts = evaluations[0].documents, len(evaluations[0].losses)
    number = texts if documents is None else len(set(documents))
    return [*lines, f"- {len(evaluations)} budgets, {texts} texts of {number} documents; intervals hold 95%."]
