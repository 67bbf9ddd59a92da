# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What holds rollouts to their budgets, besides limits: a penalty for each of them, or [`Multipliers`]."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import Trainer

from ..budget.bank import Bank
from ..episodes.block_runner import without_dropout
from ..episodes.rollouts import Rollouts
from ..episodes.step_settings import StepSettings
from .multipliers import Multipliers
from .rewards import budget_penalty, discounted_returns, group_advantages


MULTIPLIERS = "multipliers.safetensors"


class BudgetConstraint(Trainer):
    """Mixin of [`SOLGRPOTrainer`]: its constraint."""

    sol: Any
    num_generations: int
    multipliers: Multipliers | None = None
    _metrics: Any
    _step: int
    _steps_per_batch: Callable[[], int]
    _score_actions: Callable[..., tuple[torch.Tensor, torch.Tensor]]

    def _set_multipliers(self, prices: Mapping[str, Sequence[Sequence[float]]] | None) -> None:
        """Make the multipliers, if there are any; `prices` are what they begin with."""
        args = self.args
        if args.constraint != "multiplier":
            if prices is not None:
                raise ValueError(
                    '`prices` begin multipliers: pass them with `SOLGRPOConfig(constraint="multiplier")`.'
                )
            return
        space = StepSettings.of(self.sol).space
        ranges = [args.budget_range(axis) for axis in space.axes]
        self.multipliers = Multipliers(space, ranges, args.multiplier_bins, args.multiplier_rate)
        self.multipliers.begin_with(prices or {})

    def save_multipliers(self, folder: Path) -> None:
        """Write the multipliers into a checkpoint."""
        if self.multipliers is not None:
            save_file({"values": self.multipliers.values}, folder / MULTIPLIERS)

    def load_multipliers(self, checkpoint: Path) -> None:
        """Read the multipliers of a checkpoint.

        Raises:
            ValueError: if they are missing, or of other axes or bins.
        """
        if self.multipliers is None:
            return
        path, wanted = checkpoint / MULTIPLIERS, self.multipliers.values
        values = load_file(path)["values"] if path.is_file() else None
        if values is None or values.shape != wanted.shape:
            raise ValueError(
                f"{checkpoint} has no multipliers for {len(wanted)} axes and {self.multipliers.bins} bins: go on with "
                "the `constraint` and `multiplier_bins` of that run, or start a new one from the policy in it."
            )
        self.multipliers.values = values

    def _draw_balance(self, targets: torch.Tensor, generator: torch.Generator) -> torch.Tensor | None:
        """What the bank of a budget `(axes,)` has at the start of the rollouts of a block, `(axes,)`."""
        if self.args.budget_mode != "hard" or self.args.budget_horizon != "generation":
            return None
        opened = Bank.opened(targets[None], StepSettings.of(self.sol).space)
        return opened.drawn_balance(torch.rand(1, len(targets), generator=generator))[0]

    def _constraint_costs(self, rollouts: Rollouts) -> torch.Tensor:
        """What rollouts pay for their spending, `(rows, steps)` in nats; a penalty is paid at the first step."""
        args, space = self.args, StepSettings.of(self.sol).space
        ratios = space.ratios_on(rollouts.actions.device)[rollouts.actions]
        if self.multipliers is not None:
            return self.multipliers.costs(ratios, rollouts.controllable, rollouts.wanted)
        weights = [args.penalty_weight(axis) for axis in space.axes]
        free = [count > 1 for count in space.level_counts]
        penalty = budget_penalty(
            ratios, rollouts.controllable, rollouts.targets, weights, args.penalty_tolerance, free
        )
        return torch.nn.functional.pad(penalty[:, None], (0, ratios.shape[1] - 1))

    def _constraint_returns(self, costs: torch.Tensor) -> torch.Tensor:
        """What costs `(rows, steps)` take from the returns of every step: a penalty is the same at all of them."""
        if self.multipliers is None or self.args.advantage_level == "outcome":
            return -costs.sum(dim=1, keepdim=True).expand_as(costs)
        return -discounted_returns(costs, self.args.gamma)

    def _ascend(self, rollouts: Rollouts) -> None:
        """Change the multipliers by what the rollouts of all processes have spent, and log them."""
        if self.multipliers is None:
            return
        space = StepSettings.of(self.sol).space
        counted = rollouts.controllable[..., None].float()
        ratios = space.ratios_on(rollouts.actions.device)[rollouts.actions]
        spent = (ratios * counted).sum(dim=1) / counted.sum(dim=1).clamp(min=1)
        gather = self.accelerator.gather
        self.multipliers.ascend(gather(rollouts.wanted), gather(spent))
        middles = self.multipliers.middles * space.scales[:, None]
        for axis, places, values in zip(space.axes, middles, self.multipliers.values, strict=True):
            name = f"sol/multiplier_{axis.name}"
            self._metrics["train"][name].append(float(values.mean()))
            for place, value in zip(places.tolist(), values.tolist(), strict=True):
                self._metrics["train"][f"{name}/{place:.4g}"].append(value)

    def _log_cosine(self, inputs: dict[str, torch.Tensor], task: torch.Tensor, constraint: torch.Tensor) -> None:
        """Now and then, log the cosine between the gradients of returns `(rows, steps)` of the task and of the
        constraint, at the policy that has made the rollouts."""
        every, number = self.args.gradient_cosine_steps, self._step // self._steps_per_batch()
        if not every or number % every:
            return
        policy = self.accelerator.unwrap_model(self.model)
        weights = [weight for weight in policy.parameters() if weight.requires_grad]
        sums = []
        with without_dropout(policy), torch.enable_grad():
            logprobs, _ = self._score_actions(policy, inputs)
            for returns in (task, constraint):
                advantages = group_advantages(returns, self.num_generations) * inputs["completion_mask"]
                found = torch.autograd.grad(
                    (advantages * logprobs).sum(), weights, retain_graph=True, allow_unused=True
                )
                sums.append(torch.cat([x.flatten().double() for x in found if x is not None]))
        one, other = self.accelerator.reduce(torch.stack(sums), reduction="sum")
        if bool(one.any()) and bool(other.any()):
            self._metrics["train"]["sol/gradient_cosine"].append(float(one @ other / (one.norm() * other.norm())))
