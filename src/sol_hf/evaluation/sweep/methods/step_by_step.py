# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Runs a controller step by step, for all names without a method of their own."""

import torch

from ....controllers.base import Controller
from ....controllers.names import make_controller
from ....controllers.policy import PolicyController
from ....episodes.block_runner import Run, left_dense
from ..method import SweepMethod, Tensors, tensors_of


class StepByStep(SweepMethod):
    """A registered controller; a new one is made for every batch of blocks."""

    @property
    def runs_policy(self) -> bool:
        return isinstance(self.controller(), PolicyController)

    def controller(self) -> Controller:
        """A new controller of the entry's name."""
        spec = f"{self.name}:{self.count}" if self.count else self.name
        controller = make_controller(spec, self.setting.runner.model)
        if controller is None:
            raise ValueError(f"{spec!r} has no controller that could run step by step.")
        return controller

    def run(self, targets: torch.Tensor, seed: int) -> Tensors:
        pinned, hard = left_dense(targets, self.setting.space), self.setting.hard and self.runs_policy
        run = Run(
            targets.float(), lambda *_: self.controller(), pinned, hard, self.setting.horizon, self.setting.exact
        )
        return tensors_of(*self.setting.run([run]))
