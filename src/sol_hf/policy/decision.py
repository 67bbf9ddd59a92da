# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The choice of an action within the limits of a call, as an operation of a program; see `numba_decision`."""

from typing import Any

import numpy as np
import torch

from ..budget.action_space import ActionSpace
from ..budget.limits import Limits
from ..kernels.cpu.lines import Lines
from ..kernels.cpu.program import Program
from .budget_prior import BudgetPrior


class Decision:
    """The operation that chooses, at the end of a program.

    Args:
        program ([`Program`]): The program; the operation is added to its running stage.
        rows (`int`): Rows.
        scores ([`Lines`]): Scores of all actions, or of the levels of every axis.
        scalars ([`Lines`]): The numbers of the budget.
        prior ([`BudgetPrior`], *optional*): Added to the scores.
        levels (`int`): Levels of all axes together.
        are_of_levels (`bool`): Whether the scores are of levels.
    """

    def __init__(
        self,
        program: Program,
        rows: int,
        scores: Lines,
        scalars: Lines,
        prior: BudgetPrior | None,
        levels: int,
        are_of_levels: bool,
    ):
        from ..kernels.cpu import numba_decision as kernel

        self._kernel, self._rows, self._prior = kernel, rows, prior
        self._room = torch.empty(rows, 2 * levels)
        self.undecided = np.zeros(rows, dtype=np.uint8)
        self._known: tuple[ActionSpace | None, Limits | None] = (None, None)
        self._tables: list[Any] = []
        a = self._arguments = program.take(kernel.DECIDE_HEADER, range(1))
        a[kernel.ALL_LEVELS], a[kernel.ROOM] = levels, self._room.data_ptr()
        a[kernel.SCORES], a[kernel.SCORES_STRIDE], a[kernel.ARE_OF_LEVELS] = (
            scores.address,
            scores.stride,
            are_of_levels,
        )
        a[kernel.SCALARS], a[kernel.SCALARS_STRIDE] = scalars.address, scalars.stride
        a[kernel.IS_UNDECIDED] = self.undecided.ctypes.data
        if prior is not None:
            self._prior_tables = prior.tables()
            a[kernel.PRIOR_LEVELS], a[kernel.PRIOR_DIVISORS] = (table.ctypes.data for table in self._prior_tables)
            a[kernel.LOG_WIDTH], a[kernel.SPREAD] = prior.log_width.data_ptr(), prior.repayment_spread.data_ptr()
            a[kernel.EPISODE] = prior.episode_length
        program.add(kernel.decide, a)

    def skip(self) -> None:
        """Let the program run without a choice."""
        self._arguments[self._kernel.LINES] = 0

    def set_step(self, observation: Any, limits: Limits, chosen: torch.Tensor) -> list[torch.Tensor]:
        """Set what differs from step to step.

        Args:
            observation ([`Observation`]): The step.
            limits ([`Limits`]): Those of the call.
            chosen (`torch.LongTensor` of shape `(rows,)`): Where the actions go to.

        Returns:
            `list[torch.Tensor]`: What must live until the program has run.
        """
        kernel, a, space = self._kernel, self._arguments, observation.action_space
        if self._known[0] is not space or self._known[1] is not limits:
            self._know(space, limits)
        given = {kernel.CONTROLLABLE: observation.controllable, kernel.CHOSEN: chosen}
        if limits.holds_dense_rows:
            given[kernel.DENSE_TARGETS] = observation.require_targets()
        if observation.held is not None:
            given[kernel.HELD] = observation.held
        if limits.horizon == "generation":
            bank = observation.ledger.bank
            given |= {kernel.TARGETS: bank.targets, kernel.BALANCE: bank.balance, kernel.GOALS: bank.goals}
            if limits.exact:
                given |= {kernel.BEGIN: bank.begin, kernel.LEAST: bank.least}
                given[kernel.LEFT_IN_CALL] = observation.remaining_in_call
        elif limits.horizon is not None:
            ledger = observation.ledger
            given |= {kernel.TARGETS: observation.require_targets(), kernel.REMAINING: observation.remaining}
            given |= {kernel.SUMS: ledger.episode_sums, kernel.DONE: ledger.episode_counts}
            if ledger.held_counts is not None:
                given[kernel.APART] = ledger.held_counts
        a[[kernel.HELD, kernel.APART]] = 0
        a[kernel.LINES], a[kernel.STEP] = self._rows, observation.step
        return set_addresses(a, given)

    def _know(self, space: ActionSpace, limits: Limits) -> None:
        """Set what does not change within a call."""
        kernel, a = self._kernel, self._arguments
        spent = space.level_ratios
        tables: list[Any] = [np.array(space.level_counts), np.concatenate(spent)]
        tables += [np.array([pick(levels) for levels in spent], dtype=np.float32) for pick in (np.max, np.min)]
        a[[kernel.NUMBERS, kernel.LEVELS, kernel.LARGEST, kernel.SMALLEST]] = [table.ctypes.data for table in tables]
        a[kernel.AXES], a[kernel.DENSE_ID] = len(spent), space.dense_id
        horizons = {None: kernel.NO_BUDGET, "episode": kernel.OVER_EPISODE, "generation": kernel.OVER_GENERATION}
        a[kernel.HORIZON] = horizons[limits.horizon]
        a[[kernel.PINNED, kernel.DENSE_TARGETS, kernel.LEFT_IN_CALL]] = 0
        if limits.pinned is not None:
            pinned = torch.as_tensor(limits.pinned, dtype=torch.bool).contiguous()
            a[kernel.PINNED], a[kernel.PINNED_ROW] = pinned.data_ptr(), len(spent) if pinned.dim() == 2 else 0
            tables.append(pinned)
        self._tables, self._known = tables, (space, limits)


def set_addresses(arguments: np.ndarray, tensors: dict[int, torch.Tensor]) -> list[torch.Tensor]:
    """Write the addresses of tensors, by their places among the arguments; returns what must live meanwhile."""
    whole = [x if x.is_contiguous() else x.contiguous() for x in tensors.values()]
    arguments[list(tensors)] = [x.data_ptr() for x in whole]
    return whole
