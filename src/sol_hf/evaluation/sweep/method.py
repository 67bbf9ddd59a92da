# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""How a sweep runs an entry: step by step under a controller, or in a way of its own that is registered by name.

A sweep runs a controller step by step, unless a [`SweepMethod`] is registered under the entry's name. Methods know the
text as a whole, which a controller does not: the fixed schedule over all blocks, the best of random schedules, the
oracle. Every method has a file of its own in the folder `methods`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch

from ...budget.action_space import ActionSpace
from ...controllers.schedule import ScheduleController
from ...episodes.block_runner import BlockRunner, Run, RunResult
from ...registry import Registry


Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class SweepSetting:
    """What all entries of a sweep share.

    Args:
        runner ([`BlockRunner`]): Base, policy and blocks.
        counted (`torch.BoolTensor` of shape `(steps,)`): Controllable steps of an episode.
        hard (`bool`): Hold the policy to its budgets.
        schedules_at_once (`int`): Schedules of a block that run at the same time.
    """

    runner: BlockRunner
    counted: torch.Tensor
    hard: bool
    schedules_at_once: int

    @property
    def space(self) -> ActionSpace:
        """The actions."""
        return self.runner.model.action_space

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return len(self.runner.tokens)

    def run(self, runs: list[Run]) -> list[RunResult]:
        """Results of some runs on all blocks, the divergence among them."""
        return self.runner.run(runs, divergence=True)

    def schedule_run(self, schedules: torch.Tensor) -> Run:
        """The run of given schedules.

        Args:
            schedules (`torch.LongTensor` of shape `(blocks, schedules, steps)`): Action ids.
        """
        unused = torch.ones(schedules.shape[1], len(self.space.axes))
        return Run(unused, lambda begin, end: ScheduleController(schedules[begin:end].flatten(0, 1).T))


@dataclass(frozen=True)
class Part:
    """Work whose result is kept in the folder of the sweep.

    Args:
        name (`str`): Of its file.
        episodes (`int`): What it amounts to, for the progress bar.
        make (`Callable`): Does the work and gives the tensors to keep.
    """

    name: str
    episodes: int
    make: Callable[[], Tensors]


class SweepMethod:
    """How a sweep runs an entry.

    Class attributes:
        number (`str`, *optional*): What a number after the colon of the entry means; without it none is allowed.
        least (`int`): The smallest such number, and the default.
        draws (`bool`): Whether results depend on a seed. If so, every seed has a row of its own, and [`run`] is called
            for one budget at a time.

    Args:
        setting ([`SweepSetting`]): What all entries share.
        name (`str`): Of the entry.
        number (`int`): Of the entry.
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
        """Episodes that are run for one budget."""
        return self.setting.blocks

    def preparation(self) -> Part | None:
        """What has to be measured before the first budget, if anything."""
        return None

    def prepare(self, measured: Tensors) -> None:
        """Take the result of the preparation."""

    def run(self, targets: torch.Tensor, seed: int) -> Tensors:
        """Run an episode on every block at every budget.

        Args:
            targets (`torch.Tensor` of shape `(budgets, axes)`): In ratio units.
            seed (`int`): Of a method that draws.

        Returns:
            `dict`: `losses` and `divergence` `(blocks, budgets)` in nats per token, `actions` `(blocks, budgets,
            steps)`; of a method with trials also their mean losses, `trials` `(trials,)`.
        """
        raise NotImplementedError


def tensors_of(result: RunResult) -> Tensors:
    """A result, as a part of the folder holds it."""
    return {"losses": result.losses, "divergence": result.divergence, "actions": result.actions.int()}


SWEEP_METHODS: Registry[type[SweepMethod]] = Registry("sweep method", package=f"{__package__}.methods")
"""Methods by the name of their entry; any other controller runs step by step."""
