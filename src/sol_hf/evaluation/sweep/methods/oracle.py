# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The schedule of least divergence for a known text, as an estimate of what a policy could reach."""

import torch

from ....episodes.cost_model import level_costs
from ....episodes.counterfactuals import Probes
from ...oracle import LEVELS_PER_AXIS, measure_blocks, oracle_schedule
from ..method import SWEEP_METHODS, Part, SweepMethod, SweepSetting, Tensors, tensors_of


@SWEEP_METHODS.registered("oracle")
class Oracle(SweepMethod):
    """`oracle:K` measures the damage of a level in its own step and in the K steps after it."""

    number = "number of later steps"

    def __init__(self, setting: SweepSetting, name: str, number: int):
        super().__init__(setting, name, number)
        self.probes = Probes.of(setting.space, LEVELS_PER_AXIS)
        self.level_costs: list[torch.Tensor] = []

    def preparation(self) -> Part:
        episodes = self.setting.blocks * len(self.probes.actions) * (1 + self.count)
        return Part(f"costs-{self.count}", episodes, self._measure)

    def _measure(self) -> Tensors:
        return {"costs": measure_blocks(self.setting.runner, self.probes, self.count)}

    def prepare(self, measured: Tensors) -> None:
        self.level_costs = level_costs(measured["costs"], self.probes, self.setting.space)

    def run(self, targets: torch.Tensor, seed: int) -> Tensors:
        setting = self.setting
        schedules = [oracle_schedule(self.level_costs, setting.space, mean, setting.counted) for mean in targets]
        return tensors_of(*setting.run([setting.schedule_run(torch.stack(schedules, dim=1))]))
