# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""`token_keep`: attention reads the selected keys and values, and the data that the selection needs."""

from collections.abc import Callable

from ..axis_costs import AXIS_COSTS, AxisCost, StepCounts
from ..compute_costs import _attention_costs


@AXIS_COSTS.registered("token_keep")
class TokenKeepCost(AxisCost):
    """Bytes and operations of attention relative to those of dense attention."""

    def at(self, level: float) -> Callable[[StepCounts], StepCounts]:
        read, computed = _attention_costs(self.model, level, self.keys)
        dense_read, dense_computed = _attention_costs(self.model, 1.0, self.keys)
        return lambda step: step.times(kv_bytes=read / dense_read, kv_flops=computed / dense_computed)
