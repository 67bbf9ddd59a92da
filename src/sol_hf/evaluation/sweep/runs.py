# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""How each contestant of a sweep plays the blocks at given budgets."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from ...controllers.base import Controller
from ...controllers.fixed import fixed_schedule
from ...controllers.names import make_controller
from ...controllers.processors import ActionProcessorList, HardBudgetProcessor
from ...controllers.schedule import ScheduleController
from ...episodes.block_runner import BlockPlayer, Play, Played
from ...episodes.cost_model import level_costs
from ...episodes.counterfactuals import Probes
from ..oracle import LEVELS_PER_AXIS, measure_blocks, oracle_schedule
from .entries import Contestant, random_schedules


Tensors = dict[str, torch.Tensor]


@dataclass
class SweepPlayer:
    """Contestants on the blocks of a [`BlockPlayer`].

    Args:
        player ([`BlockPlayer`]): Base, policy and blocks.
        counted (`torch.BoolTensor` of shape `(steps,)`): Controllable steps of an episode.
        hard (`bool`): Hold the policy to its budgets.
        schedules_at_once (`int`): Random schedules of a block that run at the same time.
        level_costs (`dict[int, list[torch.Tensor]]`): Of the oracles that look so many steps ahead, per axis
            `(blocks, steps, levels)`; see [`SweepPlayer.learn`].
    """

    player: BlockPlayer
    counted: torch.Tensor
    hard: bool
    schedules_at_once: int
    level_costs: dict[int, list[torch.Tensor]] = field(default_factory=dict)

    def __post_init__(self):
        self.space, self.blocks = self.player.model.action_space, len(self.player.tokens)
        self.probes = Probes.of(self.space, LEVELS_PER_AXIS)

    def work(self, contestant: Contestant) -> int:
        """Episodes that a contestant plays at one budget."""
        return self.blocks * (contestant.number if contestant.draws else 1)

    def work_ahead(self, look_ahead: int) -> int:
        """Episodes that measuring costs amounts to."""
        return self.blocks * len(self.probes.actions) * (1 + look_ahead)

    def measure(self, look_ahead: int) -> Tensors:
        """What an oracle has to know: `costs` `(blocks, steps, probes)`."""
        return {"costs": measure_blocks(self.player, self.probes, look_ahead)}

    def learn(self, look_ahead: int, measured: Mapping[str, torch.Tensor]) -> None:
        """Let the oracle that looks so far ahead know what was measured."""
        self.level_costs[look_ahead] = level_costs(measured["costs"], self.probes, self.space)

    def play(self, contestant: Contestant, targets: torch.Tensor) -> Tensors:
        """What a contestant that does not draw does at `targets` `(budgets, 3)` in ratio units.

        Returns:
            `dict`: `losses` and `divergence` `(blocks, budgets)`, `actions` `(blocks, budgets, steps)`.
        """
        if contestant.name in ("fixed", "oracle"):
            play = self._schedules(torch.stack([self._schedule(contestant, mean) for mean in targets], dim=1))
        else:
            hard = self.hard and contestant.name == "policy"
            processors = ActionProcessorList([HardBudgetProcessor()]) if hard else None
            play = Play(targets.float(), lambda *_: self._controller(contestant.name), processors)
        return _tensors(*self.player.play([play], divergence=True))

    def play_random(self, trials: int, mean: torch.Tensor, seed: int) -> Tensors:
        """The best of some random schedules, by the mean loss over all blocks.

        Args:
            trials (`int`): How many to try.
            mean (`torch.Tensor` of shape `(3,)`): Mean that each has, in ratio units.
            seed (`int`): Of the drawing.

        Returns:
            `dict`: As of [`SweepPlayer.play`] for one budget, and the mean losses of all `trials` `(trials,)`.
        """
        fixed = fixed_schedule(mean, self.blocks, self.counted, self.space)
        schedules = random_schedules(fixed, self.counted, self.space, trials, seed)
        plays = [self._schedules(some) for some in schedules.split(self.schedules_at_once, dim=1)]
        played = self.player.play(plays, divergence=True)
        losses = torch.cat([part.losses for part in played], dim=1).mean(dim=0)
        part, column = divmod(int(losses.argmin()), self.schedules_at_once)
        found = played[part]
        best = Played(*(x[:, column : column + 1] for x in (found.losses, found.divergence, found.actions)))
        return _tensors(best) | {"trials": losses}

    def _controller(self, name: str) -> Controller:
        controller = make_controller(name, self.player.model)
        assert controller is not None, "only `dense` has none"
        return controller

    def _schedules(self, schedules: torch.Tensor) -> Play:
        """Plays `schedules` `(blocks, columns, steps)`."""
        unused = torch.ones(schedules.shape[1], 3)
        return Play(unused, lambda begin, end: ScheduleController(schedules[begin:end].flatten(0, 1).T))

    def _schedule(self, contestant: Contestant, mean: torch.Tensor) -> torch.Tensor:
        """A schedule `(blocks, steps)` that meets `mean` `(3,)`."""
        if contestant.name == "fixed":
            return fixed_schedule(mean, self.blocks, self.counted, self.space)
        return oracle_schedule(self.level_costs[contestant.number], self.space, mean, self.counted)


def _tensors(played: Played) -> Tensors:
    return {"losses": played.losses, "divergence": played.divergence, "actions": played.actions.int()}
