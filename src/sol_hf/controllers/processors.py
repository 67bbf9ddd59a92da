# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Processors edit action scores before an action is chosen, in the manner of transformers' logits processors.

What they have in common is in [`action_processor`], those that keep a budget are in [`hard_budget`].
"""

from collections.abc import Sequence
from typing import Any

import torch

from ..budget.action_space import ActionSpace
from ..budget.axes import axes_named
from ..budget.bank import HORIZONS, TOLERANCE
from ..budget.limits import Limits
from .action_processor import ActionProcessor, ActionProcessorList, hold_axes, restrict
from .base import Observation
from .hard_budget import GenerationBudgetProcessor, HardBudgetProcessor


__all__ = [
    "TOLERANCE",
    "ActionProcessor",
    "ActionProcessorList",
    "AxisBiasProcessor",
    "DenseRowsProcessor",
    "GenerationBudgetProcessor",
    "HardBudgetProcessor",
    "PinnedAxesProcessor",
    "budget_processors",
    "hold_axes",
    "limits_of",
    "restrict",
]


class PinnedAxesProcessor(ActionProcessor):
    """Holds axes at their largest level: those that the budget leaves dense.

    Args:
        pinned (`tuple` of `bool`, or `torch.BoolTensor` of shape `(rows, axes)`): For every axis, whether to hold it;
            a tensor says so for each row.
    """

    def __init__(self, pinned: tuple[bool, ...] | torch.Tensor):
        self.pinned = pinned
        self._known: tuple[ActionSpace, torch.Tensor] | None = None
        """The action space of the last step, and its actions that are allowed."""

    def __call__(self, action_ids: torch.Tensor, scores: torch.Tensor, observation: Observation) -> torch.Tensor:
        if isinstance(self.pinned, torch.Tensor):
            return hold_axes(scores, self.pinned.to(scores.device), observation.action_space)
        if not any(self.pinned):
            return scores
        space = observation.action_space
        if self._known is None or self._known[0] is not space or self._known[1].device != scores.device:
            ratios = space.ratios_on(scores.device)
            columns = (ratios == ratios.amax(dim=0)).unbind(dim=-1)
            held = [column for column, pinned in zip(columns, self.pinned, strict=True) if pinned]
            self._known = space, torch.stack(held).all(dim=0)
        return restrict(scores, self._known[1].expand_as(scores))


class DenseRowsProcessor(ActionProcessor):
    """Holds rows whose target is the largest level of every axis at the dense action, as if they ran alone."""

    def __call__(self, action_ids: torch.Tensor, scores: torch.Tensor, observation: Observation) -> torch.Tensor:
        ratios = observation.action_space.ratios_on(scores.device)
        largest = ratios.amax(0)
        is_dense_row = (observation.require_targets() >= largest - TOLERANCE).all(dim=-1)
        is_dense_action = (ratios == largest).all(dim=-1)
        return restrict(scores, is_dense_action | ~is_dense_row[:, None])


def budget_processors(
    pinned: tuple[bool, ...] | torch.Tensor, hard: bool, horizon: str = HORIZONS[0], exact: bool = False
) -> list[ActionProcessor]:
    """The processors that keep a budget, for `generate`, `score`, rollouts and evaluations alike.

    Args:
        pinned (`tuple` of `bool`, or `torch.BoolTensor` of shape `(rows, axes)`): The axes that the budget leaves
            dense, of all rows or of each.
        hard (`bool`): Rule out actions after which the budget could not be kept, too.
        horizon (`str`, *optional*, defaults to `"generation"`): Over what it is kept, one of `HORIZONS`.
        exact (`bool`, *optional*, defaults to `False`): See [`GenerationBudgetProcessor`].
    """
    is_any = bool(pinned.any()) if isinstance(pinned, torch.Tensor) else any(pinned)
    processors: list[ActionProcessor] = [PinnedAxesProcessor(pinned)] if is_any else []
    if hard:
        processors.append(HardBudgetProcessor() if horizon == "episode" else GenerationBudgetProcessor(exact))
    return processors


def limits_of(processors: Sequence[object]) -> Limits | None:
    """What processors do, for compiled code; `None` if they do more than it knows."""
    known: dict[type, Any] = {}
    for processor in processors:
        known[HardBudgetProcessor if type(processor) is GenerationBudgetProcessor else type(processor)] = processor
    kinds = {PinnedAxesProcessor, DenseRowsProcessor, HardBudgetProcessor}
    if len(known) < len(processors) or not known.keys() <= kinds:
        return None
    pinned, hard = known.get(PinnedAxesProcessor), known.get(HardBudgetProcessor)
    horizon, exact = None, False
    if isinstance(hard, GenerationBudgetProcessor):
        horizon, exact = HORIZONS[0], hard.exact
    elif hard is not None:
        horizon = HORIZONS[1]
    return Limits(None if pinned is None else pinned.pinned, horizon, exact, DenseRowsProcessor in known)


class AxisBiasProcessor(ActionProcessor):
    """Subtracts `bias * (axis value scaled to 0..1 over the action space)` per axis: positive favours cheaper actions.

    Args:
        token_keep (`float`, *optional*, defaults to 0.0): Bias on the KV axis.
        mlp_keep (`float`, *optional*, defaults to 0.0): Bias on the MLP axis.
        bits (`float`, *optional*, defaults to 0.0): Bias on the bit-width axis.
        further: Biases on axes that were added with [`register_axis`], by name.

    Raises:
        ValueError: for an unknown axis, and at the first step for one that the action space lacks.
    """

    def __init__(self, token_keep: float = 0.0, mlp_keep: float = 0.0, bits: float = 0.0, **further: float):
        axes_named(further)
        self.biases = {"token_keep": token_keep, "mlp_keep": mlp_keep, "bits": bits, **further}

    def penalties(self, space: ActionSpace, device: torch.device | str = "cpu") -> torch.Tensor:
        """The penalty to subtract from the score of every action, of shape `(n_actions,)`."""
        lacking = self.biases.keys() - set(space.axis_names)
        if lacking:
            raise ValueError(
                f"There is a bias for {', '.join(sorted(lacking))}, but the axes of the action space are "
                f"{', '.join(space.axis_names)}."
            )
        biases = (self.biases.get(name, 0.0) for name in space.axis_names)
        ratios = space.ratios_on(torch.device(device))
        spread = (ratios.amax(0) - ratios.amin(0)).clamp(min=1e-12)
        scaled = ((ratios - ratios.amin(0)) / spread).unbind(dim=-1)
        return sum((bias * column for bias, column in zip(biases, scaled, strict=True)), torch.zeros_like(scaled[0]))

    def __call__(self, action_ids: torch.Tensor, scores: torch.Tensor, observation: Observation) -> torch.Tensor:
        return scores - self.penalties(observation.action_space, scores.device)

    def __repr__(self) -> str:
        return "AxisBiasProcessor({})".format(", ".join(f"{axis}={bias}" for axis, bias in self.biases.items()))
