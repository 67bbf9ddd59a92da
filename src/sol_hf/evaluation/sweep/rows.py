# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Turns the results of runs into the rows of a sweep's tables."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from ...budget.action_space import ActionSpace
from ...costs.compute_costs import ComputeCosts
from ..clusters import standard_error
from .table import DOCUMENTS, REALISED, TARGET


@dataclass(frozen=True)
class SweepRow:
    """The result of one controller at one budget, under one seed.

    Args:
        controller (`str`): Its name.
        seed (`int`): The seed.
        space ([`ActionSpace`]): The actions.
        budget (`tuple` of `float`): The budget of the sweep, one number per axis, in axis units.
        target (`torch.Tensor` of shape `(axes,)`): The target of the controller, in ratio units.
        losses (`torch.Tensor` of shape `(blocks,)`): Mean loss of every block, in nats.
        divergence (`torch.Tensor` of shape `(blocks,)`): Mean KL(dense ‖ sparse), in nats.
        actions (`torch.LongTensor` of shape `(blocks, steps)`): Action ids.
        counted (`torch.BoolTensor` of shape `(blocks, steps)`): Controllable steps.
        seconds (`float`): Duration of the run.
        runs_policy (`bool`, *optional*, defaults to `False`): Whether the policy network ran in every step.
        documents (`tuple` of `int`, *optional*): The document of every block, if known.
    """

    controller: str
    seed: int
    space: ActionSpace
    budget: Sequence[float]
    target: torch.Tensor
    losses: torch.Tensor
    divergence: torch.Tensor
    actions: torch.Tensor
    counted: torch.Tensor
    seconds: float
    runs_policy: bool = False
    documents: tuple[int, ...] | None = None

    @property
    def key(self) -> dict[str, Any]:
        """The columns that identify a row of a table."""
        return {"controller": self.controller, "seed": self.seed} | dict(
            zip(self.space.axis_names, map(float, self.budget), strict=True)
        )

    @cached_property
    def realised(self) -> torch.Tensor:
        """Means of the levels over all controllable steps, `(axes,)` in ratio units."""
        return self.space.ratios.double()[self.actions[self.counted]].mean(dim=0)

    @cached_property
    def of_blocks(self) -> torch.Tensor:
        """Means of the levels over the controllable steps of every block, `(blocks, axes)` in ratio units."""
        return self._running[:, -1] / self.counted.sum(dim=1)[:, None]

    @cached_property
    def overshoot(self) -> torch.Tensor:
        """How far a running mean was above `t + (max - t) / N` after `N` controllable steps, `(axes,)`, at most.

        In ratio units; at most 0 for budgets that are kept over a generation.
        """
        number, largest = self.counted.cumsum(dim=1)[..., None], self.space.max_ratio().double()
        target = torch.minimum(self.target.double(), largest)
        above = self._running - target * number - (largest - target)
        return (above / number.clamp(min=1)).masked_fill(number == 0, -torch.inf).amax(dim=(0, 1))

    @cached_property
    def _running(self) -> torch.Tensor:
        """Sums of the levels over the controllable steps so far, `(blocks, steps, axes)` in ratio units."""
        return (self.space.ratios.double()[self.actions] * self.counted[..., None]).cumsum(dim=1)

    def block_row(self) -> dict[str, Any]:
        """The row of `blocks.parquet`."""
        numbers = {"losses": self.losses.tolist(), "divergences": self.divergence.tolist()}
        return self.key | numbers | {DOCUMENTS: self.documents}

    def sweep_row(self, costs: ComputeCosts, episode_length: int) -> dict[str, Any]:
        """The row of `sweep.parquet`.

        Args:
            costs ([`ComputeCosts`]): Costs of every action.
            episode_length (`int`): Steps of an episode.
        """
        means, loss = self.realised, float(self.losses.mean())
        episodes = self.actions.unflatten(1, (-1, min(episode_length, self.actions.shape[1]))).flatten(0, 1)
        return {
            **self.key,
            **self._per_axis(TARGET, self.target.double()),
            **self._per_axis(REALISED, means),
            "net_keep": float(means.mean()),
            "perplexity": math.exp(loss),
            "log_perplexity": loss,
            "log_perplexity_error": standard_error(self.losses.tolist(), self.documents),
            "divergence": float(self.divergence.mean()),
            "budget_error": float((self.of_blocks - self.target.double()).abs().mean()),
            "blocks": len(self.losses),
            "tokens": self.actions.numel(),
            **costs.per_token(episodes, self.runs_policy),
            "seconds": self.seconds,
        }

    def _per_axis(self, prefix: str, ratios: torch.Tensor) -> dict[str, float]:
        """Values in axis units by the names of their columns, from ratios `(axes,)`."""
        pairs = zip(self.space.axes, ratios.tolist(), strict=True)
        return {f"{prefix}{axis.name}": ratio * axis.scale for axis, ratio in pairs}
