# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""From what was played to the rows of a sweep's tables."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...budget.action_space import AXES, AXIS_SCALE, ActionSpace
from ..compute_costs import ComputeCosts


@dataclass(frozen=True)
class Cell:
    """What one controller did at one budget, under one seed.

    Args:
        controller (`str`): Its name.
        seed (`int`): The seed.
        budget (`tuple` of 3 `float`): The budget of the sweep, in units of the axes.
        target (`torch.Tensor` of shape `(3,)`): What the controller was asked for, in ratio units.
        losses (`torch.Tensor` of shape `(blocks,)`): Mean loss of every block, in nats.
        divergence (`torch.Tensor` of shape `(blocks,)`): Mean KL(dense ‖ sparse), in nats.
        actions (`torch.LongTensor` of shape `(blocks, steps)`): Action ids.
        seconds (`float`): What it took.
    """

    controller: str
    seed: int
    budget: Sequence[float]
    target: torch.Tensor
    losses: torch.Tensor
    divergence: torch.Tensor
    actions: torch.Tensor
    seconds: float

    @property
    def key(self) -> dict[str, Any]:
        """The columns that tell the rows of a table apart."""
        return {"controller": self.controller, "seed": self.seed} | dict(
            zip(AXES, map(float, self.budget), strict=True)
        )

    def realised(self, counted: torch.Tensor, space: ActionSpace) -> torch.Tensor:
        """Means of the levels over blocks and `counted` steps, `(3,)` in ratio units."""
        return space.ratios.double()[self.actions[:, counted]].mean(dim=(0, 1))

    def block_row(self) -> dict[str, Any]:
        """Its row of `blocks.parquet`."""
        return self.key | {"losses": self.losses.tolist(), "divergences": self.divergence.tolist()}

    def sweep_row(self, space: ActionSpace, counted: torch.Tensor, costs: ComputeCosts) -> dict[str, Any]:
        """Its row of `sweep.parquet`.

        Args:
            space ([`ActionSpace`]): The actions.
            counted (`torch.BoolTensor` of shape `(steps,)`): Controllable steps.
            costs ([`ComputeCosts`]): Of every action.
        """
        episodes = space.ratios.double()[self.actions[:, counted]].mean(dim=1)
        means, loss = episodes.mean(dim=0), float(self.losses.mean())
        return {
            **self.key,
            **_per_axis("target_", self.target.double()),
            **_per_axis("realised_", means),
            "net_keep": float(means.mean()),
            "perplexity": math.exp(loss),
            "log_perplexity": loss,
            "log_perplexity_error": float(self.losses.std() / math.sqrt(len(self.losses))),
            "divergence": float(self.divergence.mean()),
            "budget_error": float((episodes - self.target.double()).abs().mean()),
            "blocks": len(self.losses),
            "tokens": self.actions.numel(),
            **costs.per_token(self.actions, space, self.controller == "policy"),
            "seconds": self.seconds,
        }


def _per_axis(prefix: str, ratios: torch.Tensor) -> dict[str, float]:
    values = zip(AXES, ratios.tolist(), AXIS_SCALE, strict=True)
    return {f"{prefix}{axis}": ratio * scale for axis, ratio, scale in values}
