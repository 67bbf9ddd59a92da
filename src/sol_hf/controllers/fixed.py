# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The static schedule: the baseline that a trained policy has to beat."""

import functools
from collections.abc import Sequence
from itertools import product

import torch

from ..budget.action_space import ActionSpace
from ..budget.axes import axes_named
from ..policy.budget_prior import TIE_MARGIN
from .base import Controller, Observation
from .levels import closeness, neighbouring_levels
from .registry import register_controller


NOT_CARRIED = "token_keep"
"""The axis on which the published baseline does not carry the remainder of its rounding to the next step."""
STEPS_AHEAD = 64
"""Steps of which the scores are computed together, on the CPU."""


class FixedController(Controller):
    """The static schedule: the two levels next to each target, assigned round-robin over the rows.

    At every step the upper level of an axis goes to as many rows as its share of upper levels requires. The first of
    these rows changes from step to step. On an axis in `carry` the remainder of the rounding is carried to the next
    step, so that the mean over rows and steps meets the target. The published baseline carries it on `mlp_keep` and
    `bits`, but rounds `token_keep` anew at every step.

    A single row, or each of several rows with different targets, gets a schedule over time, and every axis carries.

    Args:
        carry (`Sequence[str]`, *optional*): Axes that carry the remainder; by default all but `token_keep`, as
            published. If all axes are named, every axis meets its target.
        across_rows (`bool`, *optional*, defaults to `True`): Assign levels over the rows of a batch. Otherwise every
            row has a schedule of its own, which does not depend on the other rows.

    Raises:
        ValueError: for an unknown axis in `carry`, and at the first step for one that the action space lacks.
    """

    def __init__(self, carry: Sequence[str] | None = None, across_rows: bool = True):
        self.carry = None if carry is None else tuple(axis.name for axis in axes_named(carry))
        self.across_rows, self.rows_are_independent = across_rows, not across_rows
        self._ahead: tuple[int, torch.Tensor, torch.Tensor, torch.Tensor] | None = None
        """First step, targets and levels of the scores that are computed ahead, and the scores."""

    def __call__(self, observation: Observation) -> torch.Tensor:
        targets, space, step = observation.require_targets(), observation.action_space, observation.total_step
        if targets.device.type != "cpu":  # to compare targets would stall the device
            return self._scores(targets, space, step, 1)[0]
        known, begin, ratios = self._ahead, step - step % STEPS_AHEAD, space.ratios_on(targets.device)
        if not (known and known[0] == begin and torch.equal(known[1], targets) and torch.equal(known[2], ratios)):
            scores = self._scores(targets, space, begin, STEPS_AHEAD)
            known = self._ahead = begin, targets.clone(), ratios.clone(), scores
        return known[3][step - begin].clone()

    def _scores(self, targets: torch.Tensor, space: ActionSpace, step: int, number: int) -> torch.Tensor:
        """Scores of all actions in `number` steps, the first of which is `step`, `(number, rows, n_actions)`."""
        (low, high, share), rows = neighbouring_levels(targets, space), len(targets)
        steps = torch.arange(step, step + number, dtype=torch.float32, device=targets.device)[:, None]
        half = half_between(low, high)
        now, then = steps[:, None], steps[:, None] + 1
        own_turn = torch.ceil(share * then - half) > torch.ceil(share * now - half)

        total = share.sum(dim=0)
        carried = _mask_on(tuple(self._carried(space)), targets.device)
        earlier = torch.where(carried, torch.round(total * steps), 0)
        number_high = torch.where(carried, torch.round(total * (steps + 1)) - earlier, torch.round(total))
        begin = _first_rows(space, steps[:, 0], earlier, number_high)
        place = (torch.arange(rows, device=targets.device)[:, None] - begin[:, None]) % rows
        shared_turn = place < number_high[:, None]

        shared = (targets == targets[0]).all() & (rows > 1 and self.across_rows)
        is_high = torch.where(shared, shared_turn, own_turn)
        wanted = torch.where(is_high, high, low)
        return closeness(wanted.flatten(0, 1), space).view(number, rows, -1)

    def _carried(self, space: ActionSpace) -> list[bool]:
        """For every axis, whether the remainder is carried."""
        if self.carry is None:
            return [name != NOT_CARRIED for name in space.axis_names]
        lacking = [name for name in self.carry if name not in space.axis_names]
        if lacking:
            raise ValueError(
                f"`carry` names {', '.join(lacking)}, but the axes of the action space are "
                f"{', '.join(space.axis_names)}."
            )
        return [name in self.carry for name in space.axis_names]


@functools.lru_cache
def _mask_on(flags: tuple[bool, ...], device: torch.device) -> torch.Tensor:
    """A mask on `device`; copied there once."""
    return torch.tensor(flags).to(device)


def _first_rows(space: ActionSpace, step: torch.Tensor, earlier: torch.Tensor, now: torch.Tensor) -> torch.Tensor:
    """Per axis the index of the first row that gets the upper level, `(steps, axes)`, not yet modulo the rows.

    It is the number of upper levels of the axes before it in this step, plus that of the axis itself in earlier steps.
    The published baseline has other rules for `token_keep` and `bits`.

    Args:
        space ([`ActionSpace`]): The axes.
        step (`torch.Tensor` of shape `(steps,)`): Indices of steps within the generation.
        earlier (`torch.Tensor` of shape `(steps, axes)`): Upper levels of the axis before the step, if it carries.
        now (`torch.Tensor` of shape `(steps, axes)`): Upper levels of the axis in the step.
    """
    published = {"token_keep": step, "bits": now[:, 0] + step}
    first, before = [], torch.zeros_like(step)
    for name, own_earlier, own_now in zip(space.axis_names, earlier.unbind(-1), now.unbind(-1), strict=True):
        first.append(published.get(name, before + own_earlier))
        before = before + own_now
    return torch.stack(first, dim=-1)


def fixed_schedule(means: torch.Tensor, blocks: int, counted: torch.Tensor, space: ActionSpace) -> torch.Tensor:
    """The static schedule of `blocks` texts, as for a single row in which they follow one another.

    Every axis alternates between the two levels next to its mean and carries the remainder from step to step and from
    block to block. The sum of a text thus differs from that of the means by less than the distance between the two
    levels, and the sum of all texts by at most half of that distance.

    Args:
        means (`torch.Tensor` of shape `(axes,)`): Means to meet, in ratio units.
        blocks (`int`): Texts.
        counted (`torch.BoolTensor` of shape `(steps,)` or `(blocks, steps)`): Controllable steps; the others are
            dense.
        space ([`ActionSpace`]): The levels.

    Returns:
        `torch.LongTensor` of shape `(blocks, steps)`: Action ids.
    """
    low, high, share = neighbouring_levels(means[None].float(), space)
    counted = counted.expand(blocks, -1)
    half = half_between(low, high).double()
    is_high = upper_turns(share.double(), half, int(counted.sum()))
    axes = len(space.axes)
    corners = torch.tensor(list(product((False, True), repeat=axes)))
    ids = closeness(torch.where(corners, high, low), space).argmax(dim=-1)
    schedule = torch.full(counted.shape, space.dense_id)
    corner = (is_high * 2 ** torch.arange(axes).flip(0)).sum(dim=-1)
    schedule[counted] = ids[corner]
    return schedule


def half_between(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Where a remainder is rounded up, for levels next to a target: ties are rounded down, as in a [`BudgetPrior`]."""
    return 0.5 + TIE_MARGIN / (high - low).clamp(min=1e-6)


def upper_turns(share: torch.Tensor, half: torch.Tensor | float, number: int) -> torch.Tensor:
    """The turns in which an axis takes its upper level, if its share of them is carried from turn to turn.

    Args:
        share (`torch.DoubleTensor` of shape `(..., axes)`): Shares of upper levels.
        half (`torch.DoubleTensor` of the same shape, or `float`): Where a remainder is rounded up, about 0.5.
        number (`int`): Turns.

    Returns:
        `torch.BoolTensor` of shape `(number, axes)`.
    """
    turn = torch.arange(number, dtype=torch.float64)[:, None]
    return torch.ceil(share * (turn + 1) - half) > torch.ceil(share * turn - half)


register_controller("fixed", lambda model, number: FixedController())
