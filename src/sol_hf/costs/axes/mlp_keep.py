# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""`mlp_keep`: of MLP matrices whose input is the hidden state, only the weights of kept channels are read."""

from collections.abc import Callable

from ..axis_costs import AXIS_COSTS, AxisCost, StepCounts


@AXIS_COSTS.registered("mlp_keep")
class MlpKeepCost(AxisCost):
    """The level is the share of these weights that is read."""

    def at(self, level: float) -> Callable[[StepCounts], StepCounts]:
        return lambda step: step.times(mlp_input_weights=level)
