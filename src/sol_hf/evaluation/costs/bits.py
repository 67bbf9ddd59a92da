# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""`bits`: fake quantization saves nothing. In nominal counts MLP weights have bits / 16 of their size."""

from collections.abc import Callable

from ...budget.axes import BITS
from ..axis_costs import AXIS_COSTS, AxisCost, StepCounts


@AXIS_COSTS.registered("bits")
class BitsCost(AxisCost):
    """Only the nominal size of the MLP weights changes."""

    def at(self, level: float) -> Callable[[StepCounts], StepCounts]:
        return lambda step: step.times(nominal_mlp_size=level / BITS.scale)
