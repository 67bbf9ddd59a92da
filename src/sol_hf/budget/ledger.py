# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What has been spent: per-row sums and means of an episode and of the whole generation, in ratio units."""

from collections.abc import Callable

import torch


class BudgetLedger:
    """Running sums of the axes of every row, over the episode and over the `generate` or `score` call.

    Only *counted* steps enter: those that were controllable, of rows that are still running.

    Args:
        rows (`int`): Number of rows.
        device (`torch.device` or `str`): Where the sums live.
        axes (`int`, *optional*, defaults to 3): Number of axes of the action space.
    """

    def __init__(self, rows: int, device: torch.device | str = "cpu", axes: int = 3):
        self.episode_sums = torch.zeros(rows, axes, dtype=torch.float32, device=device)
        self.episode_counts = torch.zeros(rows, dtype=torch.float32, device=device)
        self.total_sums = torch.zeros(rows, axes, dtype=torch.float32, device=device)
        self.total_counts = torch.zeros(rows, dtype=torch.float32, device=device)

    def start_episode(self) -> None:
        """Begin the sums of a new episode; those of the whole generation go on."""
        self.episode_sums = torch.zeros_like(self.episode_sums)
        self.episode_counts = torch.zeros_like(self.episode_counts)

    def start_call(self) -> None:
        """Begin the sums of a new call; those of a running episode go on."""
        self.total_sums = torch.zeros_like(self.total_sums)
        self.total_counts = torch.zeros_like(self.total_counts)

    def record(self, ratios: torch.Tensor, counted: torch.Tensor) -> None:
        """Add a step of levels `(rows, 3)` in ratio units for the rows where `counted` `(rows,)` is true."""
        self._add(ratios, counted.to(ratios.dtype), in_this_call=True)

    def take_back(self, ratios: torch.Tensor, counted: torch.Tensor, in_this_call: bool = True) -> None:
        """Undo a recorded step; one of an earlier call no longer stands in this call's sums."""
        self._add(ratios, -counted.to(ratios.dtype), in_this_call)

    def _add(self, ratios: torch.Tensor, weight: torch.Tensor, in_this_call: bool) -> None:
        spent = ratios * weight[:, None]
        self.episode_sums = self.episode_sums + spent
        self.episode_counts = self.episode_counts + weight
        if in_this_call:
            self.total_sums = self.total_sums + spent
            self.total_counts = self.total_counts + weight

    def episode_means(self) -> torch.Tensor:
        """Means over the counted steps of this episode, 0 before the first, of shape `(rows, 3)`."""
        return self.episode_sums / self.episode_counts.clamp(min=1)[:, None]

    def total_means(self) -> torch.Tensor:
        """Means over all counted steps, of shape `(rows, 3)`; a row that never had one was dense throughout."""
        means = self.total_sums / self.total_counts.clamp(min=1)[:, None]
        return torch.where(self.total_counts[:, None] > 0, means, torch.ones_like(means))

    def scalars(
        self,
        step: int,
        episode_length: int,
        controllable: torch.Tensor,
        targets: torch.Tensor,
        max_mlp_keep: float,
    ) -> torch.Tensor:
        """The eight scalars that the policy sees, of shape `(rows, 8)`.

        In order: progress through the episode, controllability, the three targets, and per axis the mean so far
        minus the target (0 before the first counted step). The mean of `mlp_keep` is taken relative to
        `max_mlp_keep`, the largest level of the action space.
        """
        progress = torch.full_like(self.episode_counts, (step + 1) / episode_length)
        token_keep, mlp_keep, bits = self.episode_means().unbind(dim=-1)
        means = torch.stack([token_keep, mlp_keep / max_mlp_keep, bits], dim=-1)
        drift = torch.where(self.episode_counts[:, None] > 0, means - targets, 0.0)
        head = torch.stack([progress, controllable.to(progress.dtype)], dim=-1)
        return torch.cat([head, targets, drift], dim=-1)

    def map_rows(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Apply a row-wise function (select, repeat, reorder) to all sums."""
        self.episode_sums, self.episode_counts = function(self.episode_sums), function(self.episode_counts)
        self.total_sums, self.total_counts = function(self.total_sums), function(self.total_counts)
