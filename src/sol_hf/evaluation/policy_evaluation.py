# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Compares a policy with the fixed schedule: perplexity at given budgets, and of the fixed schedule at the same cost.

A policy may spend less or more than its budget. The fixed schedule is therefore run at the means that the policy
spent:

    pass 1    policy, greedy, all budgets    ->  loss of every block, means of the chosen levels ("realised")
    pass 2    fixed, at the realised means   ->  loss of every block;   gain = fixed - policy, in nats per token

Both passes run one teacher-forced episode per block, after a dense prefill that all budgets share.
A budget has one number per axis, in axis units and in the order of the axes of the action space.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..budget.action_space import ActionSpace
from ..budget.axes import AXES, PUBLISHED_AXES
from ..budget.bank import HORIZONS
from ..budget.budget import Budget
from ..controllers.fixed import fixed_schedule
from ..controllers.policy import PolicyController
from ..controllers.schedule import ScheduleController
from ..episodes.block_runner import (
    BlockRunner,
    Run,
    RunResult,
    check_blocks,
    controlled_axes,
    left_dense,
    without_dropout,
)
from ..episodes.step_settings import StepSettings
from ..modeling_sol import SOLForCausalLM
from .clusters import clusters_of, standard_error


PUBLISHED_NAMES = tuple(axis.name for axis in PUBLISHED_AXES)
BUDGETS: tuple[tuple[float, ...], ...] = (
    (0.2, 0.5, 6),
    (0.3, 0.6, 7),
    (0.5, 0.7, 8),
    (0.7, 0.8, 9),
    (0.5, 1.0, 16),
    (1.0, 0.6, 16),
    (1.0, 1.0, 6),
    (0.3, 0.9, 8),
    (0.8, 0.5, 8),
)
"""Budgets of the published axes (token_keep, mlp_keep, bits) over the range of the published grid, all axes together
and one at a time."""


@dataclass(frozen=True)
class BudgetEvaluation:
    """A policy at one budget. Tuples have one number per axis, in axis units; losses are in nats per token.

    Args:
        requested (`tuple` of `float`): The budget.
        realised (`tuple` of `float`): Means of the levels that the policy chose, over blocks and controllable steps.
        fixed_realised (`tuple` of `float`): The same for the fixed schedule.
        mean_overshoot (`tuple` of `float`): Mean over the blocks of (mean of the episode - target), per axis.
        worst_overshoot (`tuple` of `float`): The largest of these differences over the blocks, per axis.
        budget_error (`float`): Mean over blocks and axes of |mean of the episode - target|, in ratio units.
        losses (`tuple` of `float`): Loss of every block under the policy.
        fixed_losses (`tuple` of `float`): Loss of every block under the fixed schedule.
        dense_losses (`tuple` of `float`, *optional*): Loss of every block of the base itself, if computed.
        axes (`tuple` of `str`, *optional*, defaults to the published axes): Names of the axes, in the order of the
            numbers.
        documents (`tuple` of `int`, *optional*): The document of every block, if known. Blocks of one document are not
            independent, see [`standard_error`].
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


def _perplexity(losses: Sequence[float]) -> float:
    return math.exp(sum(losses) / len(losses))


def budgets_within(space: ActionSpace, budgets: Sequence[Sequence[float]] = BUDGETS) -> list[tuple[float, ...]]:
    """Budgets clipped to the range of what an action space's levels spend, without repetitions.

    Args:
        space ([`ActionSpace`]): The levels.
        budgets (`Sequence` of `Sequence[float]`, *optional*, defaults to `BUDGETS`): One number per axis of the space,
            or one per published axis; further axes are then dense.

    Returns:
        `list` of `tuple` of `float`: One number per axis of the space.

    Raises:
        ValueError: if a budget has another number of entries.
    """
    clipped = []
    for budget in budgets:
        names = space.axis_names if len(budget) == len(space.axes) else PUBLISHED_NAMES
        if len(budget) != len(names):
            raise ValueError(_wrong_length(budget, space))
        wanted = dict(zip(names, budget, strict=True))
        values = [(wanted.get(axis.name, axis.dense), space.spent[axis.name]) for axis in space.axes]
        clipped.append(tuple(min(max(value, min(levels)), max(levels)) for value, levels in values))
    return list(dict.fromkeys(clipped))


def _check_horizon(budget_horizon: str | None) -> None:
    if budget_horizon not in (None, *HORIZONS):
        raise ValueError(f"`budget_horizon` must be one of {', '.join(HORIZONS)}, got {budget_horizon!r}.")


def evaluate_budgets(
    model: SOLForCausalLM,
    blocks: torch.Tensor,
    context_length: int,
    budgets: Sequence[Sequence[float]],
    hard: bool = False,
    batch_size: int = 8,
    progress: bool = False,
    dense: bool = False,
    documents: Sequence[int] | torch.Tensor | None = None,
    budget_horizon: str | None = None,
) -> list[BudgetEvaluation]:
    """Perplexity of a policy at every budget, and of the fixed schedule at the means that the policy spent.

    A block is a context, processed densely, and one episode under the policy's greedy actions, without KV refresh. An
    axis whose number in a budget is the dense level stays dense, as one without a target does in `generate`.
    The blocks are divided among the processes of an `accelerate launch`; the results do not depend on their number.
    Another `batch_size` may round differently, which changes losses of single blocks, but their mean very little.

    Args:
        model ([`SOLForCausalLM`]): Base and policy.
        blocks (`torch.LongTensor` of shape `(blocks, context_length + episode_length + 1)`): Token ids, at least 2
            blocks, the same in every process. See [`pack_blocks`].
        context_length (`int`): Tokens before the first step of a block.
        budgets (`Sequence` of `Sequence[float]`): Targets, one number per axis of the action space, in axis units.
        hard (`bool`, *optional*, defaults to `False`): Rule out actions after which a budget could not be kept, as
            `generate` does by default; a block is then a text of one episode. Otherwise budgets may be missed.
        batch_size (`int`, *optional*, defaults to 8): Blocks that run at the same time, each once per budget.
        progress (`bool`, *optional*, defaults to `False`): Show a progress bar.
        dense (`bool`, *optional*, defaults to `False`): Also compute the loss of the base itself.
        documents (`Sequence[int]`, *optional*): The document of every block, for standard errors: blocks of one
            document are not independent. See [`TextBlocks`].
        budget_horizon (`str`, *optional*): Over what a hard budget is kept, `"generation"` or `"episode"`; by default
            what `model.generation_config` says.

    Returns:
        `list[BudgetEvaluation]`: One per budget, in order.

    Raises:
        ValueError: if there are no budgets, less than 2 blocks, blocks of another length, or no controllable step.
        BudgetError: if a budget is malformed or below the smallest level.
    """
    _check_horizon(budget_horizon)
    settings, controller = StepSettings.of(model), PolicyController(model.policy)
    space = settings.space
    targets = check_budgets(budgets, space)
    settings.prepare(model, controlled_axes(targets, space))
    counted = check_blocks(model, blocks, context_length, batch_size)
    named = None if documents is None else tuple(map(int, documents))
    clusters_of(named, len(blocks))  # before anything is computed
    runner = BlockRunner(model, blocks, context_length, batch_size, progress)
    dense_losses = tuple(runner.dense_losses("Dense").tolist()) if dense else None
    with without_dropout(model.policy):
        run = Run(targets, lambda *_: controller, left_dense(targets, space), hard, budget_horizon)
        (result,) = runner.run([run], "Policy")
    known: dict[str, Any] = dict(dense_losses=dense_losses, axes=space.axis_names, documents=named)
    return [
        BudgetEvaluation(requested=tuple(budget), **measured, **known)
        for budget, measured in zip(budgets, _measured(runner, result, targets, counted), strict=True)
    ]


def _measured(
    runner: BlockRunner, result: RunResult, targets: torch.Tensor, counted: torch.Tensor
) -> Iterator[dict[str, Any]]:
    """What the policy spent and lost at every budget, and the fixed schedule at the same means.

    `targets` are `(budgets, axes)` in ratio units, `counted` the controllable steps.
    """
    space = runner.space
    episodes = space.ratios.double()[result.actions[:, :, counted]].mean(dim=2)  # (blocks, budgets, axes)
    means = episodes.mean(dim=0)
    fixed_result, fixed_means = _run_fixed(runner, means, counted)
    for number, target in enumerate(targets.double()):
        yield {
            "realised": _in_axis_units(means[number], space),
            "fixed_realised": _in_axis_units(fixed_means[number], space),
            "losses": tuple(result.losses[:, number].tolist()),
            "fixed_losses": tuple(fixed_result.losses[:, number].tolist()),
            **_misses(episodes[:, number] - target, space),
        }


def _run_fixed(runner: BlockRunner, means: torch.Tensor, counted: torch.Tensor) -> tuple[RunResult, torch.Tensor]:
    """The fixed schedule at given means `(budgets, axes)`, and the means `(budgets, axes)` that it spends."""
    space, blocks = runner.space, len(runner.tokens)
    schedule = torch.stack([fixed_schedule(mean, blocks, counted, space) for mean in means], dim=1)

    def fixed(begin: int, end: int) -> ScheduleController:
        return ScheduleController(schedule[begin:end].flatten(0, 1).T)

    (result,) = runner.run([Run(means.float(), fixed)], "Fixed")
    return result, space.ratios.double()[schedule[:, :, counted]].mean(dim=(0, 2))


def _misses(excess: torch.Tensor, space: ActionSpace) -> dict[str, Any]:
    """Overshoot and budget error, from differences of means and targets `(blocks, axes)` in ratio units."""
    return {
        "mean_overshoot": _in_axis_units(excess.mean(dim=0), space),
        "worst_overshoot": _in_axis_units(excess.amax(dim=0), space),
        "budget_error": float(excess.abs().mean()),
    }


def check_budgets(budgets: Sequence[Sequence[float]], space: ActionSpace) -> torch.Tensor:
    """The targets of budgets, after a check that they can be met.

    Args:
        budgets (`Sequence` of `Sequence[float]`): One number per axis, in axis units.
        space ([`ActionSpace`]): The levels.

    Returns:
        `torch.Tensor` of shape `(budgets, axes)`: In ratio units.

    Raises:
        ValueError: if there is no budget, or the number of entries of one is not the number of axes.
        BudgetError: if a budget is malformed or below the smallest level.
    """
    if not budgets:
        raise ValueError(f"There is no budget to evaluate at: give tuples ({', '.join(space.axis_names)}).")
    targets = []
    for values in budgets:
        if len(values) != len(space.axes):
            raise ValueError(_wrong_length(values, space))
        budget = Budget.of(dict(zip(space.axis_names, values, strict=True)))
        budget.check(space)
        targets.append(budget.targets(1, space=space))
    return torch.cat(targets)


def _wrong_length(budget: Sequence[float], space: ActionSpace) -> str:
    return f"A budget has one number per axis ({', '.join(space.axis_names)}), got {tuple(budget)}."


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
        names += ["dense_perplexity"] if evaluation.dense_losses is not None else []
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
