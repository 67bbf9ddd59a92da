# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""`bits`: fake quantization saves nothing; in nominal counts MLP weights have bits / 16 of their size.

With `bits_backend="nested"`, the planes of the width that is read count, and their scales. Where channels or neurons
are left out, their planes do not count, but all scales do. Nominal counts are then the same as the others. With
`"int8"`, which only MLPs know, the counts are those of fake quantization.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from torch import nn

from ...budget.axes import BITS
from ...execution.linear.planed_layers import PlanedLayer, planed_layers
from ...execution.linear.step_linear import matrix_of
from ...execution.mlp.discovery import find_mlps
from ...selection.nested_planes import plane_bytes, width_read
from ..axis_costs import AXIS_COSTS, AxisCost, MlpModules, StepCounts, Weights
from ..counted_model import CountedModel


@AXIS_COSTS.registered("bits")
class BitsCost(AxisCost):
    """The bytes of weights."""

    def __init__(self, model: CountedModel, keys: int, bits_backend: str = "fake"):
        super().__init__(model, keys, bits_backend)
        self.is_nested = bits_backend == "nested"
        self.layers = planed_layers(model.base, find_mlps(model.base)) if self.is_nested else ()
        self.mlps, self.weights = MlpModules.of(model.base), Weights.of(model)

    def at(self, level: float) -> Callable[[StepCounts], StepCounts]:
        if not self.is_nested:
            return lambda step: step.times(nominal_mlp_size=level / BITS.scale)
        width = width_read(level)
        if width is None:
            return lambda step: step
        inputs, lasts, every = (self._reads(modules, width) for modules in self.mlps)
        other, outside = every - inputs - lasts, PlaneReads.of(self.layers, width) - every
        weights = self.weights
        other_weights = weights.mlp - weights.mlp_input - weights.mlp_last

        def apply(step: StepCounts) -> StepCounts:
            return replace(
                step,
                mlp_input_size=step.mlp_input_size - inputs.saved_per(weights.mlp_input, step.itemsize),
                mlp_last_size=step.mlp_last_size - lasts.saved_per(weights.mlp_last, step.itemsize),
                other_mlp_size=step.other_mlp_size - other.saved_per(other_weights, step.itemsize),
                mlp_scale_bytes=step.mlp_scale_bytes + every.scales,
                other_bytes_saved=step.other_bytes_saved + outside.original - outside.codes - outside.scales,
            )

        return apply

    def _reads(self, modules: Iterable[nn.Module], width: int) -> "PlaneReads":
        among = set(map(id, modules))
        return PlaneReads.of([layer for layer in self.layers if id(layer.module) in among], width)


@dataclass(frozen=True)
class PlaneReads:
    """Bytes of some linear layers.

    Args:
        original (`int`): Of their weights.
        codes (`int`): Of the planes that are read.
        scales (`int`): Of the scales of the planes.
    """

    original: int = 0
    codes: int = 0
    scales: int = 0

    @classmethod
    def of(cls, layers: Iterable[PlanedLayer], width: int) -> "PlaneReads":
        """The bytes of layers that are read in `width` bits, or in as many as they need."""
        original = codes = scales = 0
        for layer in layers:
            if layer.part is not None and layer.part.least_bits is not None:
                weight = matrix_of(layer.module)
                outputs, channels = weight.shape
                own_scales = plane_bytes(outputs, channels, bits=0)
                original += weight.nbytes
                codes += plane_bytes(outputs, channels, max(width, layer.part.least_bits)) - own_scales
                scales += own_scales
        return cls(original, codes, scales)

    def __sub__(self, other: "PlaneReads") -> "PlaneReads":
        return PlaneReads(self.original - other.original, self.codes - other.codes, self.scales - other.scales)

    def saved_per(self, weights: int, itemsize: int) -> float:
        """Bytes saved per weight without those of the scales, as a fraction of `itemsize`."""
        return (self.original - self.codes) / (weights * itemsize) if weights else 0.0
