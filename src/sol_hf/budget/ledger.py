# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Compute spent: per-row sums and means of an episode and of the whole generation, in ratio units."""

import copy
from collections.abc import Callable

import numpy as np
import torch

from .action_space import ActionSpace
from .bank import Bank


class BudgetLedger:
    """Running sums of the axes of every row, over the episode and over the `generate` or `score` call.

    Only *counted* steps are added: those that were controllable, of rows that are still running. An axis that a step
    *held* at its largest level, because its text is short, is part of the sums of the call, but not of the episode or
    the bank, by which the budget is kept.

    Args:
        rows (`int`): Number of rows.
        space ([`ActionSpace`]): Its axes are the columns.
        device (`torch.device` or `str`, *optional*, defaults to `"cpu"`): Where the sums are stored.
    """

    bank: Bank | None = None
    """That of the call, if it keeps its budget over the generation."""

    def __init__(self, rows: int, space: ActionSpace, device: torch.device | str = "cpu"):
        self._mean_divisors = space.mean_divisors
        has_divisors = any(divisor != 1 for divisor in self._mean_divisors)
        self.divisors = np.array(self._mean_divisors, dtype=np.float32) if has_divisors else None
        """By which the means that the policy sees are divided, `(axes,)`; `None` if by 1."""
        axes = len(space.axes)
        self.episode_sums = torch.zeros(rows, axes, dtype=torch.float32, device=device)
        self.episode_counts = torch.zeros(rows, dtype=torch.float32, device=device)
        self.held_counts: torch.Tensor | None = None
        """Counted steps of the episode that held an axis, `(rows, axes)`; `None` if none did."""
        self.total_sums = torch.zeros(rows, axes, dtype=torch.float32, device=device)
        self.total_counts = torch.zeros(rows, dtype=torch.float32, device=device)

    def copy(self) -> "BudgetLedger":
        """A ledger with the same sums, in tensors of its own."""
        ledger = copy.copy(self)
        ledger.map_rows(torch.Tensor.clone)
        return ledger

    def start_episode(self) -> None:
        """Begin the sums of a new episode. Those of the whole call continue, and so does its bank."""
        self.episode_sums = torch.zeros_like(self.episode_sums)
        self.episode_counts, self.held_counts = torch.zeros_like(self.episode_counts), None
        self.bank = None if self.bank is None else self.bank.after_episode()

    def start_call(self) -> None:
        """Begin the sums of a new call. Those of an unfinished episode continue; the bank is still the last call's."""
        self.total_sums = torch.zeros_like(self.total_sums)
        self.total_counts = torch.zeros_like(self.total_counts)

    def record(self, ratios: torch.Tensor, counted: torch.Tensor, held: torch.Tensor | None = None) -> None:
        """Add a step.

        Args:
            ratios (`torch.Tensor` of shape `(rows, axes)`): Its levels in ratio units.
            counted (`torch.BoolTensor` of shape `(rows,)`): The rows in which it counts.
            held (`torch.BoolTensor` of shape `(rows, axes)`, *optional*): Axes that it held at their largest level.
        """
        counted = counted.to(ratios.dtype)
        self._add(ratios, counted, held, in_this_call=True)
        self.bank = None if self.bank is None else self.bank.after(ratios, counted, held)

    def take_back(
        self,
        ratios: torch.Tensor,
        counted: torch.Tensor,
        in_this_call: bool = True,
        held: torch.Tensor | None = None,
    ) -> None:
        """Undo a recorded step.

        Without `in_this_call` it is a step of an earlier call, which is part of the episode's sums only.
        """
        counted = counted.to(ratios.dtype)
        self._add(ratios, -counted, held, in_this_call)
        self.bank = None if self.bank is None else self.bank.before(ratios, counted, held)

    def _add(self, ratios: torch.Tensor, weight: torch.Tensor, held: torch.Tensor | None, in_this_call: bool) -> None:
        spent = ratios * weight[:, None]
        self.episode_sums = self.episode_sums + (spent if held is None else spent.masked_fill(held, 0))
        self.episode_counts = self.episode_counts + weight
        if held is not None:
            apart = held * weight[:, None]
            self.held_counts = apart if self.held_counts is None else self.held_counts + apart
        if in_this_call:
            self.total_sums = self.total_sums + spent
            self.total_counts = self.total_counts + weight

    def budgeted_counts(self) -> torch.Tensor:
        """Steps of this episode that count against the budget, of shape `(rows, axes)`, or `(rows, 1)` if all do."""
        counts = self.episode_counts[:, None]
        return counts if self.held_counts is None else counts - self.held_counts

    def episode_means(self) -> torch.Tensor:
        """Means over the steps of this episode that count, 0 before the first, of shape `(rows, axes)`."""
        return self.episode_sums / self.budgeted_counts().clamp(min=1)

    def total_means(self) -> torch.Tensor:
        """Means over all counted steps, of shape `(rows, axes)`; 1 for a row that had none."""
        means = self.total_sums / self.total_counts.clamp(min=1)[:, None]
        return torch.where(self.total_counts[:, None] > 0, means, torch.ones_like(means))

    def scalars(
        self, step: int, episode_length: int, controllable: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        """The policy's inputs on progress and budget, of shape `(rows, 2 + 2 * axes)`; see [`ScalarColumns`].

        In order: progress through the episode, controllability, the target of every axis, and for every axis the mean
        so far minus the target (0 before the first counted step). On an axis with `mean_over_largest` the mean is
        divided by the largest level of the action space.

        Args:
            step (`int`): Index of the step within its episode.
            episode_length (`int`): Steps in an episode.
            controllable (`torch.BoolTensor` of shape `(rows,)`): Whether the step is controllable.
            targets (`torch.Tensor` of shape `(rows, axes)`): The budget in ratio units.
        """
        on_cpu = self.episode_sums.device.type == "cpu"
        compute = self._scalars_by_numpy if on_cpu else self._scalars_by_torch
        return compute((step + 1) / episode_length, controllable, targets)

    def _scalars_by_torch(self, share: float, controllable: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        progress = torch.full_like(self.episode_counts, share)
        columns = zip(self.episode_means().unbind(dim=-1), self._mean_divisors, strict=True)
        means = torch.stack([mean if divisor == 1 else mean / divisor for mean, divisor in columns], dim=-1)
        drift = torch.where(self.budgeted_counts() > 0, means - targets, 0.0)
        head = torch.stack([progress, controllable.to(progress.dtype)], dim=-1)
        return torch.cat([head, targets, drift], dim=-1)

    def _scalars_by_numpy(self, progress: float, controllable: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The same numbers where they are on the CPU, in a fifth of the time: an operation of torch takes longer."""
        goal, counts = targets.detach().numpy(), self.budgeted_counts().numpy()
        rows, axes = goal.shape
        scalars = np.empty((rows, 2 + 2 * axes), dtype=goal.dtype)
        scalars[:, 0], scalars[:, 1], scalars[:, 2 : 2 + axes] = progress, controllable.numpy(), goal
        means = self.episode_sums.numpy() / np.maximum(counts, 1)
        means = means if self.divisors is None else means / self.divisors
        drift = means - goal
        scalars[:, 2 + axes :] = drift if counts.all() else np.where(counts > 0, drift, 0)
        return torch.from_numpy(scalars)

    def map_rows(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Apply a row-wise function (select, repeat, reorder) to all sums and the bank."""
        self.episode_sums, self.episode_counts = function(self.episode_sums), function(self.episode_counts)
        self.held_counts = None if self.held_counts is None else function(self.held_counts)
        self.total_sums, self.total_counts = function(self.total_sums), function(self.total_counts)
        self.bank = None if self.bank is None else self.bank.map_rows(function)
