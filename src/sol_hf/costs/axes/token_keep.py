# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""`token_keep`: attention reads the selected keys and values, and the data that the selection needs."""

from collections.abc import Callable

from ..axis_costs import AXIS_COSTS, AxisCost, StepCounts
from ..cache_reads import attention_costs, cached_layers
from ..counted_model import CountedModel


@AXIS_COSTS.registered("token_keep")
class TokenKeepCost(AxisCost):
    """Bytes and operations of attention relative to those of dense attention."""

    def __init__(self, model: CountedModel, keys: int, bits_backend: str = "fake"):
        super().__init__(model, keys, bits_backend)
        self.layers = cached_layers(model)
        self.dense_read, self.dense_computed = self._costs(1.0, of_base=True)

    def at(self, level: float) -> Callable[[StepCounts], StepCounts]:
        read, computed = self._costs(level)
        factors = dict(kv_bytes=_share(read, self.dense_read), kv_flops=_share(computed, self.dense_computed))
        return lambda step: step.times(**factors)

    def _costs(self, level: float, of_base: bool = False) -> tuple[float, float]:
        return attention_costs(self.layers, self.model.config.selection_rule, level, self.keys, of_base)


def _share(read: float, dense: float) -> float:
    return read / dense if dense else 1.0
