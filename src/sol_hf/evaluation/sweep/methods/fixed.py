# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The fixed schedule over all blocks together, so that it meets its means."""

import torch

from ....controllers.fixed import fixed_schedule
from ..method import SWEEP_METHODS, SweepMethod, Tensors, tensors_of


@SWEEP_METHODS.registered("fixed")
class FixedSchedule(SweepMethod):
    """One schedule per budget, whose remainder is carried from block to block."""

    def run(self, targets: torch.Tensor, seed: int) -> Tensors:
        setting = self.setting
        schedules = [fixed_schedule(mean, setting.blocks, setting.counted, setting.space) for mean in targets]
        return tensors_of(*setting.run([setting.schedule_run(torch.stack(schedules, dim=1))]))
