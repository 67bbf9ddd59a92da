# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""`bits`: fake quantization saves nothing; in nominal counts MLP weights have bits / 16 of their size.

With `bits_backend="nested"`, the planes of the width that is read count, and their scales. Nominal counts are then the
same as the others. With `"int8"`, which only MLPs know, the counts are those of fake quantization.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from ...budget.axes import BITS
from ...execution.linear.planed_layers import PlanedLayer, planed_layers
from ...execution.linear.step_linear import matrix_of
from ...execution.mlp.discovery import find_mlps
from ...selection.nested_planes import plane_bytes, width_read
from ..axis_costs import AXIS_COSTS, AxisCost, StepCounts


@AXIS_COSTS.registered("bits")
class BitsCost(AxisCost):
    """The bytes of weights."""

    def at(self, level: float) -> Callable[[StepCounts], StepCounts]:
        if self.bits_backend != "nested":
            return lambda step: step.times(nominal_mlp_size=level / BITS.scale)
        width = width_read(level)
        if width is None:
            return lambda step: step
        base = self.model.base
        mlps = find_mlps(base)
        within = {id(module) for mlp in mlps for module in mlp.modules()}
        layers = planed_layers(base, mlps)
        mlp_saved = _saved([layer for layer in layers if id(layer.module) in within], width)
        other_saved = _saved([layer for layer in layers if id(layer.module) not in within], width)
        weights = sum(parameter.numel() for mlp in mlps for parameter in mlp.parameters())

        def apply(step: StepCounts) -> StepCounts:
            return replace(
                step,
                mlp_size=1 - mlp_saved / (weights * step.itemsize),
                other_bytes_saved=step.other_bytes_saved + other_saved,
            )

        return apply


def _saved(layers: Sequence[PlanedLayer], width: int) -> int:
    """Bytes of the original weights of layers over those that are read of their planes."""
    saved = 0
    for layer in layers:
        if layer.part is not None and layer.part.least_bits is not None:
            weight = matrix_of(layer.module)
            outputs, channels = weight.shape
            saved += weight.numel() * weight.element_size()
            saved -= plane_bytes(outputs, channels, max(width, layer.part.least_bits))
    return saved
