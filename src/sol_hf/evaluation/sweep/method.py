# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Sweep methods, which run an entry of a sweep: step by step under a controller, or by a method registered by name.

A sweep runs a controller step by step, unless a [`SweepMethod`] is registered under the entry's name. Unlike a
controller, a method has access to the whole text. The fixed schedule over all blocks, the best of random schedules and
the oracle are methods. There is one file per method in the folder `methods`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch

from ...budget.action_space import ActionSpace
from ...controllers.schedule import ScheduleController
from ...episodes.block_runner import BlockRunner, Run, RunResult
from ...episodes.step_settings import StepSettings
from ...registry import Registry


Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class SweepSetting:
    """Settings and blocks that all entries of a sweep have in common.

    Args:
        runner ([`BlockRunner`]): Base, policy and blocks.
        counted (`torch.BoolTensor` of shape `(blocks, steps)`): Controllable steps.
        hard (`bool`): Enforce the budgets of the policy.
        schedules_at_once (`int`): Schedules of a block that run at the same time.
        horizon (`str`, *optional*): Over what hard budgets are kept; by default that of [`StepSettings`].
        exact (`bool`, *optional*, defaults to `False`): See [`Run`].
    """

    runner: BlockRunner
    counted: torch.Tensor
    hard: bool
    schedules_at_once: int
    horizon: str | None = None
    exact: bool = False

    @property
    def kept_over(self) -> str | None:
        """Over what the policy keeps its budgets, one of `HORIZONS`; `None` if it need not."""
        return (self.horizon or StepSettings.of(self.runner.model).budget_horizon) if self.hard else None

    @property
    def space(self) -> ActionSpace:
        """The actions."""
        return self.runner.space

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return len(self.runner.tokens)

    def run(self, runs: list[Run]) -> list[RunResult]:
        """Results of some runs on all blocks, including the divergence."""
        return self.runner.run(runs, divergence=True)

    def schedule_run(self, schedules: torch.Tensor) -> Run:
        """A run that follows given schedules.

        Args:
            schedules (`torch.LongTensor` of shape `(blocks, schedules, steps)`): Action ids.
        """
        unused = torch.ones(schedules.shape[1], len(self.space.axes))
        return Run(unused, lambda blocks, some: ScheduleController(schedules[blocks][:, some].flatten(0, 1).T))


@dataclass(frozen=True)
class Part:
    """A part of a sweep, whose result is saved in the folder of the sweep.

    Args:
        name (`str`): Name of its file.
        episodes (`int`): Number of blocks to play, for the progress bar.
        make (`Callable`): Runs it and returns the tensors to save.
    """

    name: str
    episodes: int
    make: Callable[[], Tensors]


class SweepMethod:
    """Base class: runs an entry of a sweep.

    Class attributes:
        number (`str`, *optional*): Meaning of a number after the colon of the entry. `None` if a number is not
            allowed.
        least (`int`): The smallest such number, and the default.
        draws (`bool`): Whether results depend on a seed. If so, every seed has a row of its own, and [`run`] is called
            for one budget at a time.

    Args:
        setting ([`SweepSetting`]): Settings and blocks of the sweep.
        name (`str`): Name of the entry.
        number (`int`): Number of the entry.
    """

    number: ClassVar[str | None] = None
    least: ClassVar[int] = 0
    draws: ClassVar[bool] = False

    def __init__(self, setting: SweepSetting, name: str, number: int):
        self.setting, self.name, self.count = setting, name, number

    @property
    def runs_policy(self) -> bool:
        """Whether the policy network runs in every step, so that its compute counts."""
        return False

    @property
    def episodes(self) -> int:
        """Number of blocks that are played for one budget."""
        return self.setting.blocks

    def preparation(self) -> Part | None:
        """A part that has to be run before the first budget, if there is one."""
        return None

    def prepare(self, measured: Tensors) -> None:
        """Set the result of the preparation."""

    def run(self, targets: torch.Tensor, seed: int) -> Tensors:
        """Play every block at every budget.

        Args:
            targets (`torch.Tensor` of shape `(budgets, axes)`): In ratio units.
            seed (`int`): Seed, for methods with `draws`.

        Returns:
            `dict`: `losses` and `divergence` `(blocks, budgets)` in nats per token, `actions` `(blocks, budgets,
            steps)`; for a method with trials also their mean losses, `trials` `(trials,)`.
        """
        raise NotImplementedError


def tensors_of(result: RunResult) -> Tensors:
    """A result as tensors, to save as a part."""
    return {"losses": result.losses, "divergence": result.divergence, "actions": result.actions.int()}


SWEEP_METHODS: Registry[type[SweepMethod]] = Registry("sweep method", package=f"{__package__}.methods")
"""Methods by the name of their entry; all other controllers run step by step."""
