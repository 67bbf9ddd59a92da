# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The best of some random schedules, by the mean loss over all blocks."""

import torch

from ....budget.action_space import ActionSpace
from ....controllers.fixed import fixed_schedule
from ....episodes.block_runner import RunResult
from ..method import SWEEP_METHODS, SweepMethod, Tensors, tensors_of


@SWEEP_METHODS.registered("random")
class BestOfRandom(SweepMethod):
    """`random:N` runs N random schedules of the same means and keeps the best; the losses of all are returned, too."""

    number, least, draws = "number of schedules", 1, True

    @property
    def episodes(self) -> int:
        return self.setting.blocks * self.count

    def run(self, targets: torch.Tensor, seed: int) -> Tensors:
        setting, (mean,) = self.setting, targets
        fixed = fixed_schedule(mean, setting.blocks, setting.counted, setting.space)
        schedules = random_schedules(fixed, setting.counted, setting.space, self.count, seed)
        results = setting.run([setting.schedule_run(some) for some in schedules.split(setting.schedules_at_once, 1)])
        losses = torch.cat([part.losses for part in results], dim=1).mean(dim=0)
        part, column = divmod(int(losses.argmin()), setting.schedules_at_once)
        found = results[part]
        best = RunResult(*(x[:, column : column + 1] for x in (found.losses, found.divergence, found.actions)))
        return tensors_of(best) | {"trials": losses}


def random_schedules(
    fixed: torch.Tensor, counted: torch.Tensor, space: ActionSpace, trials: int, seed: int
) -> torch.Tensor:
    """Random orders of the levels of a fixed schedule: every axis of every block is shuffled independently.

    The means of every block are thus those of the fixed schedule.

    Args:
        fixed (`torch.LongTensor` of shape `(blocks, steps)`): From [`fixed_schedule`].
        counted (`torch.BoolTensor` of shape `(steps,)` or `(blocks, steps)`): Controllable steps; the others are not
            shuffled.
        space ([`ActionSpace`]): The levels.
        trials (`int`): Number of schedules.
        seed (`int`): Seed of the shuffling.

    Returns:
        `torch.LongTensor` of shape `(blocks, trials, steps)`: Action ids.
    """
    generator, counted = torch.Generator().manual_seed(seed), counted.expand(fixed.shape)
    schedules = fixed[:, None].repeat(1, trials, 1)
    for own, schedule, steps in zip(fixed, schedules, counted, strict=True):
        shape, shuffled = (trials, int(steps.sum())), []
        for levels in space.level_indices(own[steps]).unbind(dim=-1):
            order = torch.rand(shape, generator=generator).argsort(dim=-1)
            shuffled.append(levels.expand(shape).gather(1, order))
        schedule[:, steps] = space.ids_of(torch.stack(shuffled, dim=-1))
    return schedules
