# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Mean levels that were realised in the requests of every task of an evaluation."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch

from ..budget.action_space import ActionSpace
from ..selection.rule import SelectionRule


Shares: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Spending:
    """What every request of every task has spent: sums of the levels over its controllable steps, in ratio units.

    Args:
        space ([`ActionSpace`]): Meaning of the action ids.
        rule ([`SelectionRule`]): Defines the controllable steps.
        shares (`Callable`, *optional*): `shares(actions, contexts)` returns the share of the bytes of dense steps that
            every row has read, `(rows,)`.
    """

    def __init__(self, space: ActionSpace, rule: SelectionRule, shares: Shares | None = None):
        self.space, self.rule, self.shares = space, rule, shares
        self.records: dict[tuple[str, str], torch.Tensor] = {}

    def of_rows(self, actions: torch.Tensor, contexts: Sequence[int] | torch.Tensor) -> torch.Tensor:
        """The sums of every row `(rows, axes + 3)`: of the levels, controllable steps, steps, and shares of bytes.

        Args:
            actions (`torch.LongTensor` of shape `(rows, steps)`): Action ids, -1 where a row has no step.
            contexts (`Sequence[int]`): Tokens before the first step of every row.
        """
        actions = actions.cpu()
        seen = torch.as_tensor(contexts)[:, None] + torch.arange(1, actions.shape[1] + 1)
        taken = actions >= 0
        counted = taken & self.rule.is_controllable(seen)
        levels = self.space.ratios.double()[actions.clamp(min=0)] * counted[..., None]
        steps = taken.sum(dim=1).double()
        read = torch.zeros_like(steps) if self.shares is None else self.shares(actions, torch.as_tensor(contexts))
        return torch.cat([levels.sum(dim=1), torch.stack([counted.sum(1), steps, read * steps], dim=1)], dim=1)

    def add(self, task: str, actions: torch.Tensor, contexts: Sequence[int] | torch.Tensor) -> None:
        """Add rows that are not answers to a known request; arguments as for [`Spending.of_rows`]."""
        for spent in self.of_rows(actions, contexts):
            self.put(task, f"row {len(self.records)}", spent)

    def put(self, task: str, key: str, spent: torch.Tensor) -> None:
        """Note what a request has spent; a request that is made twice counts once.

        Args:
            task (`str`): The task of the request.
            key (`str`): Identifies the request within the task.
            spent (`torch.DoubleTensor` of shape `(axes + 3,)`): A row of [`Spending.of_rows`], or a sum of rows.
        """
        self.records[task, key] = spent

    @property
    def sums(self) -> dict[str, torch.Tensor]:
        """The sums of every task `(axes + 3,)`."""
        sums: dict[str, torch.Tensor] = {}
        for (task, _), spent in self.records.items():
            sums[task] = sums.get(task, torch.zeros_like(spent)) + spent
        return sums

    def report(self, parts: Sequence[Mapping[str, torch.Tensor]] | None = None) -> dict[str, dict[str, Any]]:
        """Per task the means over controllable steps in axis units, their mean in ratio units (`net_keep`), the share
        of the bytes of dense steps (`bytes_share`, if it is counted), and the numbers of steps.

        Args:
            parts (`Sequence` of `dict`, *optional*): The sums of all processes; by default those of this process only.
        """
        parts = [self.sums] if parts is None else parts
        tasks = sorted({task for part in parts for task in part})
        report = {}
        for task in tasks:
            total = torch.stack([part[task] for part in parts if task in part]).sum(dim=0)
            *sums, counted, taken, read = total.tolist()
            axes = zip(self.space.axes, sums, strict=True)
            levels = {axis.name: value / counted * axis.scale if counted else axis.dense for axis, value in axes}
            scales = [axis.scale for axis in self.space.axes]
            kept = [value / scale for value, scale in zip(levels.values(), scales, strict=True)]
            shares = {} if self.shares is None else {"bytes_share": read / taken if taken else 1.0}
            means = {**levels, "net_keep": sum(kept) / len(kept), **shares}
            report[task] = {**means, "controllable_steps": int(counted), "steps": int(taken)}
        return report


def format_report(settings: Mapping[str, Any]) -> str:
    """What was asked for and what was spent per task, as a table in Markdown.

    Args:
        settings (`Mapping[str, Any]`): The entry `config.sol` of the results of an evaluation.
    """
    budget, realised = settings["budget"], settings["realised"]
    head = f"sol: controller {settings['controller']}"
    if budget is None:
        return f"{head}: the base itself, no budget"
    axes = list(budget)
    shares = {"net_keep": "net keep", "bytes_share": "bytes"}
    shares = {name: title for name, title in shares.items() if all(name in spent for spent in realised.values())}
    rows = [["Tasks", *axes, *shares.values(), "controllable steps", "steps"]]
    rows.append(["*asked*", *(_asked(budget[axis]) for axis in axes), *[""] * len(shares), "", ""])
    for task, spent in realised.items():
        counts = [str(spent["controllable_steps"]), str(spent["steps"])]
        rows.append([task, *(f"{spent[name]:.4g}" for name in (*axes, *shares)), *counts])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["|" + "|".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + "|" for row in rows]
    lines.insert(1, "|" + "|".join("-" * width for width in widths) + "|")
    is_hard = settings["budget_mode"] == "hard"
    over = " over every episode" if is_hard and settings.get("budget_horizon") == "episode" else ""
    return "\n".join([f"{head}, {settings['budget_mode']} budget{over}", *lines])


def _asked(target: Any) -> str:
    return "dense" if target is None else f"{target:g}"
