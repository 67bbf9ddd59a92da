# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Compares a policy with the fixed schedule: perplexity and KL(dense ‖ sparse) at given budgets, at equal cost.

A policy may spend less or more than its budget. The fixed schedule is therefore run at the means that the policy
spent:

    pass 1    policy, greedy, all budgets    ->  loss and KL of every block, means of the chosen levels ("realised")
    pass 2    fixed, at the realised means   ->  loss and KL of every block;   gain = fixed - policy, in nats per token

Both passes are a [`Contest`]: teacher-forced episodes with a KV refresh between them, after a dense prefill. A budget
has one number per axis, in axis units and in the order of the axes of the action space.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..budget.action_space import ActionSpace
from ..budget.axes import AXES
from ..modeling_sol import SOLForCausalLM
from .budget_targets import BUDGETS, PUBLISHED_NAMES, budgets_within, check_budgets
from .clusters import standard_error
from .sweep.contest import Contest, SweepConfig
from .sweep.entries import POLICY
from .sweep.rows import SweepRow
from .sweep.sweep import Sweep


__all__ = [
    "BUDGETS",
    "PUBLISHED_NAMES",
    "BudgetEvaluation",
    "Opponent",
    "budgets_within",
    "check_budgets",
    "evaluate_budgets",
    "format_table",
    "to_rows",
]

FIXED = "fixed"


@dataclass(frozen=True)
class Opponent:
    """Another controller, at the means that the policy spent.

    Args:
        name (`str`): Its name.
        realised (`tuple` of `float`): Means of the levels that it chose, in axis units.
        losses (`tuple` of `float`): Loss of every block, in nats per token.
        divergences (`tuple` of `float`): KL(dense ‖ sparse) of every block, in nats per token.
    """

    name: str
    realised: tuple[float, ...]
    losses: tuple[float, ...] = field(repr=False)
    divergences: tuple[float, ...] = field(repr=False)


@dataclass(frozen=True)
class BudgetEvaluation:
    """A policy at one budget. Tuples have one number per axis, in axis units; losses are in nats per token.

    Args:
        requested (`tuple` of `float`): The budget.
        realised (`tuple` of `float`): Means of the levels that the policy chose, over blocks and controllable steps.
        fixed_realised (`tuple` of `float`): The same for the fixed schedule.
        mean_overshoot (`tuple` of `float`): Mean over the blocks of (mean of the block - target), per axis.
        worst_overshoot (`tuple` of `float`): The largest of these differences over the blocks, per axis.
        budget_error (`float`): Mean over blocks and axes of |mean of the block - target|, in ratio units.
        losses (`tuple` of `float`): Loss of every block under the policy.
        fixed_losses (`tuple` of `float`): Loss of every block under the fixed schedule.
        dense_losses (`tuple` of `float`, *optional*): Loss of every block of the base itself, if computed.
        axes (`tuple` of `str`, *optional*, defaults to the published axes): Names of the axes, in the order of the
            numbers.
        documents (`tuple` of `int`, *optional*): The document of every block, if known. Blocks of one document are not
            independent, see [`standard_error`].
        divergences (`tuple` of `float`, *optional*): KL(dense ‖ policy) of every block.
        fixed_divergences (`tuple` of `float`, *optional*): KL(dense ‖ fixed) of every block.
        distance (`float`, *optional*): As `budget_error`, but over the axes only that the budget does not leave dense.
        above_guarantee (`float`, *optional*): How far the mean of some axis was above `t + (max - t) / N` after `N`
            steps of a block, at most; in ratio units.
        others (`tuple` of [`Opponent`], *optional*): Other contestants at the same cost.
    """

    requested: tuple[float, ...]
    realised: tuple[float, ...]
    fixed_realised: tuple[float, ...]
    mean_overshoot: tuple[float, ...]
    worst_overshoot: tuple[float, ...]
    budget_error: float
    losses: tuple[float, ...] = field(repr=False)
    fixed_losses: tuple[float, ...] = field(repr=False)
    dense_losses: tuple[float, ...] | None = field(default=None, repr=False)
    axes: tuple[str, ...] = PUBLISHED_NAMES
    documents: tuple[int, ...] | None = field(default=None, repr=False)
    divergences: tuple[float, ...] | None = field(default=None, repr=False)
    fixed_divergences: tuple[float, ...] | None = field(default=None, repr=False)
    distance: float | None = None
    above_guarantee: float | None = None
    others: tuple[Opponent, ...] = ()

    @property
    def net_keep(self) -> float:
        """Mean over the axes of the realised means, in ratio units."""
        ratios = [value / AXES[name].scale for name, value in zip(self.axes, self.realised, strict=True)]
        return sum(ratios) / len(ratios)

    @property
    def perplexity(self) -> float:
        """Perplexity under the policy."""
        return _perplexity(self.losses)

    @property
    def fixed_perplexity(self) -> float:
        """Perplexity under the fixed schedule."""
        return _perplexity(self.fixed_losses)

    @property
    def dense_perplexity(self) -> float | None:
        """Perplexity of the base itself, if it was computed."""
        return None if self.dense_losses is None else _perplexity(self.dense_losses)

    @property
    def gains(self) -> tuple[float, ...]:
        """Loss of the fixed schedule minus that of the policy on every block, in nats per token."""
        return tuple(fixed - loss for fixed, loss in zip(self.fixed_losses, self.losses, strict=True))

    @property
    def gain(self) -> float:
        """Mean of the gains: the log of the ratio of the perplexities."""
        return sum(self.gains) / len(self.gains)

    @property
    def gain_error(self) -> float:
        """Standard error of the gain, over documents if they are known."""
        return standard_error(self.gains, self.documents)

    @property
    def opponents(self) -> tuple[Opponent, ...]:
        """All contestants but the policy, the fixed schedule first; without one whose KL is not known."""
        if self.fixed_divergences is None:
            return self.others
        fixed = Opponent(FIXED, self.fixed_realised, self.fixed_losses, self.fixed_divergences)
        return (fixed, *self.others)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _perplexity(losses: Sequence[float]) -> float:
    return math.exp(_mean(losses))


def evaluate_budgets(
    model: SOLForCausalLM,
    blocks: torch.Tensor,
    context_length: int | Sequence[int],
    budgets: Sequence[Sequence[float]],
    hard: bool = False,
    batch_size: int = 8,
    progress: bool = False,
    dense: bool = False,
    documents: Sequence[int] | torch.Tensor | None = None,
    budget_horizon: str | None = None,
    others: Sequence[str] = (),
    folder: str | Path | None = None,
) -> list[BudgetEvaluation]:
    """Perplexity and KL of a policy at every budget, and of the fixed schedule at the means that the policy spent.

    A block is a context, processed densely, and episodes under the policy's greedy actions, with a KV refresh between
    them as in `generate`. An axis whose number in a budget is the dense level stays dense.
    The blocks are divided among the processes of an `accelerate launch`; the results do not depend on their number.
    Another `batch_size` may round differently, which changes losses of single blocks, but their mean very little.

    Args:
        model ([`SOLForCausalLM`]): Base and policy.
        blocks (`torch.LongTensor` of shape `(blocks, context_length + episodes * episode_length + 1)`): Token ids, at
            least 2 blocks, the same in every process. See [`pack_blocks`].
        context_length (`int`, or one per block): Tokens before the first step of a block. A block with a shorter
            context than others ends earlier; what follows is not read.
        budgets (`Sequence` of `Sequence[float]`): Targets, one number per axis of the action space, in axis units.
        hard (`bool`, *optional*, defaults to `False`): Rule out actions after which a budget could not be kept, as
            `generate` does by default. Otherwise budgets may be missed.
        batch_size (`int`, *optional*, defaults to 8): Blocks that run at the same time, each once per budget.
        progress (`bool`, *optional*, defaults to `False`): Show a progress bar.
        dense (`bool`, *optional*, defaults to `False`): Also return the loss of the base itself.
        documents (`Sequence[int]`, *optional*): The document of every block, for standard errors: blocks of one
            document are not independent. See [`TextBlocks`].
        budget_horizon (`str`, *optional*): Over what a hard budget is kept, `"generation"` or `"episode"`; by default
            what `model.generation_config` says.
        others (`Sequence[str]`, *optional*): Further contestants, such as `fixed:place` and `oracle`, see
            [`SweepEntry`].
        folder (`str` or `Path`, *optional*): Folder for finished parts, as that of a [`Sweep`]: a stopped evaluation
            continues there.

    Returns:
        `list[BudgetEvaluation]`: One per budget, in order.

    Raises:
        ValueError: if there are no budgets, less than 2 blocks, blocks of another length, or no controllable step.
        BudgetError: if a budget is malformed or below the smallest level.
        SweepError: if `folder` belongs to something else.
    """
    distinct = tuple(dict.fromkeys(tuple(budget) for budget in budgets))
    contexts = context_length if isinstance(context_length, int) else tuple(map(int, context_length))
    settings: dict[str, Any] = dict(budgets=distinct, context_length=contexts, batch_size=batch_size, hard=hard)
    config = SweepConfig(controllers=(POLICY, FIXED, *others), budget_horizon=budget_horizon, **settings)
    run = Contest if folder is None else partial(Sweep, folder=folder)
    contest = run(model, blocks, config, progress=progress, documents=documents)
    base, *rows = contest.rows()
    losses = tuple(base.losses.tolist()) if dense else None
    found = {budget: _evaluation([row for row in rows if row.budget == budget], losses) for budget in distinct}
    return [found[tuple(budget)] for budget in budgets]


def _evaluation(rows: Sequence[SweepRow], dense_losses: tuple[float, ...] | None) -> BudgetEvaluation:
    """What all contestants did at one budget; the policy and the fixed schedule come first."""
    policy, fixed, *others = rows
    space, target = policy.space, policy.target.double()
    excess = policy.of_blocks - target
    controlled = target < policy.space.max_ratio().double() - 1e-6
    return BudgetEvaluation(
        requested=tuple(policy.budget),
        realised=_in_axis_units(policy.realised, space),
        fixed_realised=_in_axis_units(fixed.realised, space),
        mean_overshoot=_in_axis_units(excess.mean(dim=0), space),
        worst_overshoot=_in_axis_units(excess.amax(dim=0), space),
        budget_error=float(excess.abs().mean()),
        losses=tuple(policy.losses.tolist()),
        fixed_losses=tuple(fixed.losses.tolist()),
        dense_losses=dense_losses,
        axes=space.axis_names,
        documents=policy.documents,
        divergences=tuple(policy.divergence.tolist()),
        fixed_divergences=tuple(fixed.divergence.tolist()),
        distance=float(excess[:, controlled].abs().mean()) if bool(controlled.any()) else 0.0,
        above_guarantee=float(policy.overshoot.max()),
        others=tuple(
            Opponent(
                row.controller,
                _in_axis_units(row.realised, space),
                tuple(row.losses.tolist()),
                tuple(row.divergence.tolist()),
            )
            for row in others
        ),
    )


def _in_axis_units(ratios: torch.Tensor, space: ActionSpace) -> tuple[float, ...]:
    return tuple((ratios * space.scales.to(ratios.dtype)).tolist())


def to_rows(evaluations: Sequence[BudgetEvaluation]) -> list[dict[str, Any]]:
    """One flat dictionary of numbers per budget, for a data frame or a JSON file, without losses of blocks.

    Args:
        evaluations (`Sequence[BudgetEvaluation]`): From [`evaluate_budgets`].
    """
    rows = []
    for evaluation in evaluations:
        row: dict[str, Any] = {}
        for prefix, name in [
            ("", "requested"),
            ("realised_", "realised"),
            ("fixed_", "fixed_realised"),
            ("mean_overshoot_", "mean_overshoot"),
            ("worst_overshoot_", "worst_overshoot"),
        ]:
            values = zip(evaluation.axes, getattr(evaluation, name), strict=True)
            row |= {f"{prefix}{axis}": value for axis, value in values}
        names = ["net_keep", "budget_error", "perplexity", "fixed_perplexity", "gain", "gain_error"]
        names += [name for name in ("distance", "above_guarantee") if getattr(evaluation, name) is not None]
        names += ["dense_perplexity"] if evaluation.dense_losses is not None else []
        if evaluation.divergences is not None:
            row["divergence"] = _mean(evaluation.divergences)
            row |= {f"{other.name}_divergence": _mean(other.divergences) for other in evaluation.opponents}
        rows.append(row | {name: getattr(evaluation, name) for name in names} | {"blocks": len(evaluation.losses)})
    return rows


def format_table(evaluations: Sequence[BudgetEvaluation]) -> str:
    """A Markdown table, one line per budget; numbers of the axes are separated by slashes, in the order of the axes.

    Args:
        evaluations (`Sequence[BudgetEvaluation]`): From [`evaluate_budgets`].
    """

    def joined(values: Sequence[float]) -> str:
        return " / ".join(f"{value:.3g}" for value in values)

    def overshoot(evaluation: BudgetEvaluation) -> str:
        digits = [2 if AXES[axis].is_integral else 3 for axis in evaluation.axes]
        return " / ".join(f"{x:+.{n}f}" for x, n in zip(evaluation.worst_overshoot, digits, strict=True))

    columns: dict[str, Callable[[BudgetEvaluation], str]] = {
        "requested": lambda x: joined(x.requested),
        "realised": lambda x: joined(x.realised),
        "net keep": lambda x: f"{x.net_keep:.3f}",
        "perplexity": lambda x: f"{x.perplexity:.3f}",
        "fixed": lambda x: f"{x.fixed_perplexity:.3f}",
        "gain (nats a token)": lambda x: f"{x.gain:+.4f} ± {x.gain_error:.4f}",
        "worst overshoot": overshoot,
    }
    if any(evaluation.dense_losses is not None for evaluation in evaluations):
        columns["dense"] = lambda x: f"{x.dense_perplexity:.3f}"
    lines = [list(columns), ["---"] * len(columns)]
    lines += [[text_of(evaluation) for text_of in columns.values()] for evaluation in evaluations]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
