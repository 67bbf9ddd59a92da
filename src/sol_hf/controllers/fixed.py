# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The static schedule: the baseline that a trained policy has to beat."""

from collections.abc import Sequence
from itertools import product

import torch

from ..budget.action_space import AXES, ActionSpace
from ..policy.budget_prior import TIE_MARGIN
from .base import Controller, Observation
from .levels import closeness, neighbouring_levels
from .registry import register_controller


class FixedController(Controller):
    """The static schedule: the two levels next to each target, dealt round-robin over the rows.

    At every step an axis gives its upper level to as many rows as its share asks for, beginning at a row that moves on
    with the steps. On an axis in `carry` the remainder of that rounding is carried to the next step, so that the mean
    over rows and steps meets the target. The published baseline carries it on `mlp_keep` and `bits`, but rounds
    `token_keep` anew at every step.

    A row that is alone, or has a target of its own, deals to itself over time, and every axis carries.

    Args:
        carry (`Sequence[str]`, *optional*, defaults to `("mlp_keep", "bits")`): Axes that carry the remainder. All
            three make every axis meet its target.
        across_rows (`bool`, *optional*, defaults to `True`): Deal over the rows of a batch. Otherwise every row deals
            to itself, whatever else is in the batch.
    """

    def __init__(self, carry: Sequence[str] = ("mlp_keep", "bits"), across_rows: bool = True):
        unknown = set(carry) - set(AXES)
        if unknown:
            raise ValueError(f"`carry` names no axis: {sorted(unknown)}. The axes are {', '.join(AXES)}.")
        self.carry = tuple(axis in carry for axis in AXES)
        self.across_rows, self.rows_are_independent = across_rows, not across_rows

    def __call__(self, observation: Observation) -> torch.Tensor:
        targets = observation.require_targets()
        low, high, share = neighbouring_levels(targets, observation.action_space)
        rows, step = observation.rows, observation.total_step
        half = 0.5 + TIE_MARGIN / (high - low).clamp(min=1e-6)  # ties go to the lower level, as in a `BudgetPrior`
        own_turn = torch.ceil(share * (step + 1) - half) > torch.ceil(share * step - half)

        total = share.sum(dim=0)
        carried = torch.tensor(self.carry, device=targets.device)
        dealt = torch.where(carried, torch.round(total * step), 0)
        hands = torch.where(carried, torch.round(total * (step + 1)) - dealt, torch.round(total))
        begin = torch.stack([torch.zeros_like(dealt[0]) + step, hands[0] + dealt[1], hands[0] + step])
        place = (torch.arange(rows, device=targets.device)[:, None] - begin) % rows
        shared_turn = place < hands

        shared = (targets == targets[0]).all() & (rows > 1 and self.across_rows)
        is_high = torch.where(shared, shared_turn, own_turn)
        return closeness(torch.where(is_high, high, low), observation.action_space)


def fixed_schedule(means: torch.Tensor, blocks: int, counted: torch.Tensor, space: ActionSpace) -> torch.Tensor:
    """The static schedule of `blocks` episodes: that of a lone row which plays them one after the other.

    Every axis alternates between the two levels next to its mean and carries the remainder from step to step and from
    block to block, so every episode is within a step of the means, and all of them together within half a step.

    Args:
        means (`torch.Tensor` of shape `(3,)`): Means to meet, in ratio units.
        blocks (`int`): Episodes.
        counted (`torch.BoolTensor` of shape `(steps,)`): Controllable steps of an episode; the others are dense.
        space ([`ActionSpace`]): The levels.

    Returns:
        `torch.LongTensor` of shape `(blocks, steps)`: Action ids.
    """
    low, high, share = neighbouring_levels(means[None].float(), space)
    each = int(counted.sum())
    turn = torch.arange(blocks * each, dtype=torch.float64)[:, None]
    half = 0.5 + TIE_MARGIN / (high - low).clamp(min=1e-6).double()
    is_high = torch.ceil(share.double() * (turn + 1) - half) > torch.ceil(share.double() * turn - half)
    corners = torch.tensor(list(product((False, True), repeat=len(AXES))))
    ids = closeness(torch.where(corners, high, low), space).argmax(dim=-1)
    schedule = torch.full((blocks, len(counted)), space.dense_id)
    schedule[:, counted] = ids[(is_high * torch.tensor([4, 2, 1])).sum(dim=-1)].view(blocks, each)
    return schedule


register_controller("fixed", lambda model, number: FixedController())
