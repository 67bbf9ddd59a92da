# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The schedule of least divergence for a known text, as an estimate of what a policy could reach."""

import torch

from ....episodes.cost_model import level_costs
from ....episodes.counterfactuals import Probes
from ...oracle import LEVELS_PER_AXIS, horizon_parts, measure_blocks, oracle_schedule
from ..method import SWEEP_METHODS, Part, SweepMethod, SweepSetting, Tensors, tensors_of


def measured_damage(setting: SweepSetting, later_steps: int) -> tuple[Probes, Part]:
    """The probes of a space, and the part of a contest that measures their damage at every step."""
    probes = Probes.of(setting.space, LEVELS_PER_AXIS)
    plays = setting.blocks * len(probes.actions) * (1 + later_steps)

    def measure() -> Tensors:
        return {"costs": measure_blocks(setting.runner, probes, later_steps)}

    return probes, Part(f"costs-{later_steps}", plays, measure)


@SWEEP_METHODS.registered("oracle")
class Oracle(SweepMethod):
    """`oracle:K` measures the damage of a level in its own step and in the K steps after it.

    It meets the means over what the policy keeps its budgets over: every text, every episode, or all texts together.
    """

    number = "number of later steps"

    def __init__(self, setting: SweepSetting, name: str, number: int):
        super().__init__(setting, name, number)
        self.probes, self.part = measured_damage(setting, number)
        self.level_costs: list[torch.Tensor] = []

    def preparation(self) -> Part:
        return self.part

    def prepare(self, measured: Tensors) -> None:
        self.level_costs = level_costs(measured["costs"], self.probes, self.setting.space)

    def run(self, targets: torch.Tensor, seed: int) -> Tensors:
        setting, steps = self.setting, self.setting.runner.steps
        length = setting.runner.model.config.episode_length
        parts = horizon_parts(setting.blocks, steps, setting.kept_over, length)
        costs, counted = self.level_costs, setting.counted
        schedules = [oracle_schedule(costs, setting.space, mean, counted, parts) for mean in targets]
        return tensors_of(*setting.run([setting.schedule_run(torch.stack(schedules, dim=1))]))
