# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The fixed schedule that knows the place in a page, over all blocks together, so that it meets its means."""

import torch

from ....budget.place_costs import PlaceCosts
from ....controllers.place import PLACE, depends_on_place
from ...places import costs_by_place, place_schedule, places_of
from ..method import SWEEP_METHODS, Part, Tensors, tensors_of
from .fixed import FixedSchedule
from .oracle import measured_damage


@SWEEP_METHODS.registered(PLACE)
class PlaceSchedule(FixedSchedule):
    """Levels by the place in a page, at costs that the config has, or that are measured on these blocks.

    Costs from the blocks themselves favour it a little. With a criterion that chooses single tokens it is the fixed
    schedule.
    """

    costs: PlaceCosts | None = None

    def preparation(self) -> Part | None:
        if not depends_on_place(self.setting.runner.model):
            return None
        config = self.setting.runner.model.config
        if config.place_costs is not None:
            self.costs = PlaceCosts.from_json(config.place_costs, config.action_space, config.page_size)
            return None
        return measured_damage(self.setting, 0)[1]

    def prepare(self, measured: Tensors) -> None:
        setting, probes = self.setting, measured_damage(self.setting, 0)[0]
        self.costs = costs_by_place(measured["costs"], setting.counted, self._places(), probes, setting.space)

    def run(self, targets: torch.Tensor, seed: int) -> Tensors:
        if self.costs is None:
            return super().run(targets, seed)
        setting, places = self.setting, self._places()
        plans = [place_schedule(self.costs, mean, setting.counted, places, setting.space) for mean in targets]
        return tensors_of(*setting.run([setting.schedule_run(torch.stack(plans, dim=1))]))

    def _places(self) -> torch.Tensor:
        runner = self.setting.runner
        return places_of(runner.contexts, runner.steps, runner.model.config.page_size)
