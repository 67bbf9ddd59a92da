# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""`neuron_keep`: of the last projections of MLPs, only the weights of kept neurons are read."""

from collections.abc import Callable

from ..axis_costs import AXIS_COSTS, AxisCost, StepCounts


@AXIS_COSTS.registered("neuron_keep")
class NeuronKeepCost(AxisCost):
    """The level is the share of these weights that is read."""

    def at(self, level: float) -> Callable[[StepCounts], StepCounts]:
        return lambda step: step.times(mlp_last_weights=level)
