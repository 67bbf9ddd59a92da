# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Metrics of [`SOLGRPOTrainer`]: metrics of its rollouts, evaluation at budgets, a progress bar.

sol/token_keep          mean of the levels of the rollouts          sol/requested_token_keep    mean that was asked for
sol/token_keep/0.2      share of the steps at this level            sol/budget_error            |spent - asked for|
sol/task_reward         mean reward of a step                       sol/penalty                 mean of a rollout
sol/divergence          mean KL(dense ‖ sparse), if computed        sol/gradient_cosine         of reward, constraint
sol/multiplier_bits     mean over its bins                          sol/multiplier_bits/6.5     of one bin
sol/group_std           deviation within a group, mean over groups
reward, reward_std      of the rollouts: rewards of the steps added up, minus the penalty; as in TRL
frac_reward_zero_std    share of the rollouts whose group has equal rewards; as in TRL
trend/task_reward       running mean over the last 50 entries of the log, also of net_keep and budget_error
eval_gain               nats per token over the fixed schedule      eval_gain/0.5-0.7-8         at one budget

Means are in ratio units. For axes with another unit the name has a suffix, as in `sol/bits_ratio`.
"""

import math
import re
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from transformers import ProgressCallback, Trainer
from transformers.trainer_utils import speed_metrics

from ..budget.action_space import ActionSpace
from ..episodes.rollouts import Rollouts
from ..episodes.step_settings import StepSettings
from ..episodes.text_blocks import DOCUMENT, TOKENS, at_most_of_each
from ..evaluation.clusters import standard_error
from ..evaluation.policy_evaluation import (
    BudgetEvaluation,
    budgets_within,
    check_budgets,
    evaluate_budgets,
)
from .block_order import BlockDataset
from .trend import WATCHED, trends


EVALUATED = ("loss", "perplexity", "fixed_perplexity", "gain", "gain_error", "budget_error", "net_keep")
"""Metrics of an evaluation, as means over its budgets."""
EVALUATED_AT_BUDGETS = ("perplexity", "fixed_perplexity", "gain", "budget_error")
"""Those of one budget, see [`at_budget`]."""
DETAIL = re.compile(r"^(sol/\w+|eval_\w+)/[\d.-]+$")
"""Metrics of a single level or budget."""


def rollout_figures(
    rollouts: Rollouts, rewards: torch.Tensor, penalty: torch.Tensor, space: ActionSpace
) -> dict[str, torch.Tensor]:
    """Metrics of a batch of rollouts, as scalars.

    Args:
        rollouts ([`Rollouts`]): The batch.
        rewards (`torch.Tensor` of shape `(rows, steps)`): Rewards of the steps, all terms included.
        penalty (`torch.Tensor` of shape `(rows,)`): What every rollout pays for its spending.
        space ([`ActionSpace`]): Meaning of the actions.

    Returns:
        `dict[str, torch.Tensor]`: Reward, log-probability of the labels, penalty, budgets and means in ratio units,
        and for every level of every axis the share of the controllable steps that chose it.
    """
    counted = rollouts.controllable[..., None].float()
    ratios = space.ratios_on(rollouts.actions.device)[rollouts.actions]
    realised = (ratios * counted).sum(dim=1) / counted.sum(dim=1).clamp(min=1)
    figures = {
        "sol/task_reward": rewards.mean(),
        "sol/label_logprob": rollouts.label_logprobs.mean(),
        "sol/divergence": rollouts.divergence.mean(),
        "sol/penalty": penalty.mean(),
        "sol/net_keep": realised.mean(),
        "sol/budget_error": (realised - rollouts.wanted).abs().mean(),
    }
    for number, axis in enumerate(space.axes):
        name = axis.name if axis.scale == 1 else f"{axis.name}_ratio"
        figures[f"sol/{name}"] = realised[:, number].mean()
        figures[f"sol/requested_{name}"] = rollouts.wanted[:, number].mean()
    taken = space.level_indices(rollouts.actions[rollouts.controllable])
    for name, column in space.by_axis(taken).items():
        levels = space.levels[name]
        places = torch.arange(len(levels), device=taken.device)
        shares = (column[:, None] == places).float().sum(dim=0) / max(len(taken), 1)
        figures |= {f"sol/{name}/{level:g}": share for level, share in zip(levels, shares, strict=True)}
    return figures


def reward_figures(totals: torch.Tensor, group_size: int) -> dict[str, float]:
    """The metrics of TRL's `GRPOTrainer` about the rewards of a batch.

    Args:
        totals (`torch.Tensor` of shape `(rows,)`): Reward of every rollout of all processes, group after group.
        group_size (`int`): Rollouts in a group.
    """
    spread = totals.unflatten(0, (-1, group_size)).std(dim=1)
    return {
        "reward": totals.mean().item(),
        "reward_std": totals.std().item(),
        "sol/group_std": spread.mean().item(),
        "frac_reward_zero_std": torch.isclose(spread, torch.zeros_like(spread)).float().mean().item(),
    }


def evaluation_figures(evaluations: Sequence[BudgetEvaluation], prefix: str = "eval") -> dict[str, float]:
    """Means over the budgets, and the metrics of every budget.

    Perplexities are averaged geometrically, so that the gain is the log of their ratio.

    Args:
        evaluations (`Sequence[BudgetEvaluation]`): From [`evaluate_budgets`].
        prefix (`str`, *optional*, defaults to `"eval"`): Prefix of the names.
    """

    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values)

    loss = mean([math.log(x.perplexity) for x in evaluations])
    gain = mean([x.gain for x in evaluations])
    gains = [mean(of_block) for of_block in zip(*(x.gains for x in evaluations), strict=True)]
    means = (
        loss,
        math.exp(loss),
        math.exp(loss + gain),
        gain,
        standard_error(gains, evaluations[0].documents),
        mean([x.budget_error for x in evaluations]),
        mean([x.net_keep for x in evaluations]),
    )
    figures = dict(zip(EVALUATED, means, strict=True))
    for evaluation in evaluations:
        for name in EVALUATED_AT_BUDGETS:
            figures[at_budget(name, evaluation.requested)] = getattr(evaluation, name)
    return {f"{prefix}_{name}": value for name, value in figures.items()}


def at_budget(name: str, budget: Sequence[float]) -> str:
    """The name of a metric at one budget, such as `gain/0.5-0.7-8`."""
    return f"{name}/{'-'.join(f'{value:g}' for value in budget)}"


def evaluation_table(metrics: Mapping[str, float], axes: Sequence[str], prefix: str = "eval") -> str:
    """What an evaluation found, as a few lines of text that fit a terminal.

    Args:
        metrics (`Mapping[str, float]`): From `SOLGRPOTrainer.evaluate`.
        axes (`Sequence[str]`): Names of the axes, in the order of the numbers of a budget.
        prefix (`str`, *optional*, defaults to `"eval"`): Prefix of the names.
    """
    gains = f"{prefix}_gain/"
    forms = {"gain": "+.4f", "perplexity": ".3f", "fixed_perplexity": ".3f", "budget_error": ".4f"}
    lines: list[tuple[str, ...]] = [("budget", "gain", "perplexity", "fixed", "off budget")]
    for budget in [name.removeprefix(gains) for name in metrics if name.startswith(gains)]:
        values = [format(metrics[f"{prefix}_{name}/{budget}"], form) for name, form in forms.items()]
        lines.append((budget.replace("-", "/"), *values))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = ["  ".join([a.ljust(widths[0]), *map(str.rjust, rest, widths[1:])]) for a, *rest in lines]
    gain, error = metrics[f"{prefix}_gain"], metrics[f"{prefix}_gain_error"]
    head = f"Gain over the fixed schedule at equal cost: {gain:+.4f} ± {error:.4f} nats a token"
    return "\n".join([head, f"Budgets are {'/'.join(axes)}:", *rows])


class BudgetProgress(ProgressCallback):
    """A progress bar with the latest task reward, net keep and budget error.

    Differences from `ProgressCallback`: these three metrics are shown, and metrics of single levels and budgets are
    not printed.
    """

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and self.training_bar is not None:
            shown = {name: f"{value:.3f}" for name in WATCHED if (value := logs.get(f"sol/{name}")) is not None}
            if shown:
                self.training_bar.set_postfix(shown)
        brief = {name: value for name, value in logs.items() if not DETAIL.match(name)}
        super().on_log(args, state, control, logs=brief, **kwargs)


class BudgetMetrics(Trainer):
    """Mixin of [`SOLGRPOTrainer`]: its metrics and its evaluation."""

    sol: Any
    control: Any
    num_generations: int
    _metrics: Any
    _packed: Any

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log metrics, in training with the running means of [`trends`]."""
        if self.model.training:
            for name, value in trends(self._metrics["train"], self.state.log_history).items():
                self._metrics["train"][name] = [value]
        super().log(logs, start_time)

    def evaluate(
        self,
        eval_dataset: BlockDataset | dict[str, BlockDataset] | str | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Evaluate the greedy policy and the fixed schedule on the first blocks of a dataset, at all budgets.

        Args:
            eval_dataset (`Dataset`, `IterableDataset`, a `dict` of them or a name, *optional*): Texts or blocks, as
                for the trainer; its own by default. Each of several datasets is evaluated under its name.
            ignore_keys (`list[str]`, *optional*): Not used.
            metric_key_prefix (`str`, *optional*, defaults to `"eval"`): Prefix of the names of the metrics.

        Returns:
            `dict[str, float]`: `eval_loss`, `eval_perplexity`, `eval_fixed_perplexity`, `eval_gain` with its standard
            error `eval_gain_error`, `eval_budget_error` and `eval_net_keep`, averaged over the budgets; perplexities,
            gain and budget error also for every budget, as `eval_gain/0.5-0.7-8`. See [`evaluate_budgets`].

        Raises:
            ValueError: if there is no dataset, or less than 2 blocks in it.
        """
        if isinstance(eval_dataset, str):
            dataset = self.eval_dataset[eval_dataset]
        else:
            dataset = self.eval_dataset if eval_dataset is None else self._packed(eval_dataset, True)
        if dataset is None:
            raise ValueError("There is nothing to evaluate on: give the trainer or `evaluate` an `eval_dataset`.")
        if isinstance(dataset, dict):
            found: dict[str, float] = {}
            for name, part in dataset.items():
                found |= self.evaluate(part, ignore_keys, f"{metric_key_prefix}_{name}")
            return found
        self._memory_tracker.start()
        begin, was_training = time.time(), self.model.training
        self.model.eval()  # in evaluation mode TRL logs separately from training
        try:
            evaluations = self._evaluate_blocks(dataset)
            metrics = evaluation_figures(evaluations, metric_key_prefix)
            metrics |= speed_metrics(metric_key_prefix, begin, num_samples=len(evaluations[0].losses))
            self.log(metrics)
        finally:
            self.model.train(was_training)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._memory_tracker.stop_and_update_metrics(metrics)
        return metrics

    def _evaluate_blocks(self, dataset: BlockDataset) -> list[BudgetEvaluation]:
        budgets = self.evaluation_budgets()
        rows = list(islice(at_most_of_each(dataset, self.args.eval_per_document), self.args.eval_blocks))
        blocks = torch.tensor([row[TOKENS] for row in rows])
        documents = [row[DOCUMENT] for row in rows] if rows and DOCUMENT in rows[0] else None
        at_once = max(1, self.args.rollout_batch_size // len(budgets))
        return evaluate_budgets(
            self.sol,
            blocks,
            self.args.context_length,
            budgets,
            hard=self.args.budget_mode == "hard",
            batch_size=at_once,
            documents=documents,
            budget_horizon=self.args.budget_horizon,
        )

    def evaluation_budgets(self) -> Sequence[Sequence[float]]:
        """Budgets of an evaluation, one number per axis: `eval_budgets`, or defaults within the action space.

        Raises:
            BudgetError: if one of `eval_budgets` is below the smallest level.
        """
        budgets = self.args.eval_budgets
        if budgets is None:
            return budgets_within(StepSettings.of(self.sol).space)
        check_budgets(budgets, StepSettings.of(self.sol).space)
        return budgets

    def _show_progress(self) -> None:
        """Replace transformers' own progress bar, if there is one, by [`BudgetProgress`]."""
        if any(type(callback) is ProgressCallback for callback in self.callback_handler.callbacks):
            self.remove_callback(ProgressCallback)
            self.add_callback(BudgetProgress)

    def _log_rollouts(self, rollouts: Rollouts, rewards: torch.Tensor, penalty: torch.Tensor) -> None:
        figures = rollout_figures(rollouts, rewards, penalty, StepSettings.of(self.sol).space)
        values = self.accelerator.gather(torch.stack(list(figures.values()))[None]).mean(dim=0)
        totals = self.accelerator.gather(rewards.sum(dim=1) - penalty)
        logged = dict(zip(figures, values.tolist(), strict=True)) | reward_figures(totals, self.num_generations)
        for name, value in logged.items():
            self._metrics["train"][name].append(value)
