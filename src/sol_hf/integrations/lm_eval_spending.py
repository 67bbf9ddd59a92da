# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Mean levels that were realised in the requests of every task of an evaluation."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..budget.action_space import ActionSpace
from ..selection.rule import SelectionRule


class Spending:
    """Sums of the levels over the controllable steps of every task, in ratio units.

    Args:
        space ([`ActionSpace`]): Meaning of the action ids.
        rule ([`SelectionRule`]): Defines the controllable steps.
    """

    def __init__(self, space: ActionSpace, rule: SelectionRule):
        self.space, self.rule = space, rule
        self.sums: dict[str, torch.Tensor] = {}

    def add(self, task: str, actions: torch.Tensor, contexts: Sequence[int] | torch.Tensor) -> None:
        """Add the actions of some rows.

        Args:
            task (`str`): The task of their requests.
            actions (`torch.LongTensor` of shape `(rows, steps)`): Action ids, -1 where a row has no step.
            contexts (`Sequence[int]`): Tokens before the first step of every row.
        """
        actions = actions.cpu()
        seen = torch.as_tensor(contexts)[:, None] + torch.arange(1, actions.shape[1] + 1)
        taken = actions >= 0
        counted = taken & self.rule.is_controllable(seen)
        levels = self.space.ratios.double()[actions[counted]].sum(dim=0)
        row = torch.cat([levels, torch.stack([counted.sum(), taken.sum()]).double()])
        self.sums[task] = self.sums.get(task, torch.zeros_like(row)) + row

    def report(self, parts: Sequence[Mapping[str, torch.Tensor]] | None = None) -> dict[str, dict[str, Any]]:
        """Per task the means over controllable steps, in axis units, and the numbers of steps.

        Args:
            parts (`Sequence` of `dict`, *optional*): The sums of all processes; by default those of this process only.
        """
        parts = [self.sums] if parts is None else parts
        tasks = sorted({task for part in parts for task in part})
        report = {}
        for task in tasks:
            total = torch.stack([part[task] for part in parts if task in part]).sum(dim=0)
            *sums, counted, taken = total.tolist()
            axes = zip(self.space.axes, sums, strict=True)
            levels = {axis.name: value / counted * axis.scale if counted else axis.dense for axis, value in axes}
            report[task] = {**levels, "controllable_steps": int(counted), "steps": int(taken)}
        return report
