# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""`mlp_keep`: MLP matrices that take the hidden state are read for the kept channels only."""

from collections.abc import Callable

from ..axis_costs import AXIS_COSTS, AxisCost, StepCounts


@AXIS_COSTS.registered("mlp_keep")
class MlpKeepCost(AxisCost):
    """The share of their weights that is read is the level."""

    def at(self, level: float) -> Callable[[StepCounts], StepCounts]:
        return lambda step: step.times(elastic_weights=level)
