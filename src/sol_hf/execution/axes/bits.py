# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The axis `bits`: MLP outputs are rounded, or MLPs run in int8, or weights are read in fewer bits."""

from collections.abc import Hashable, Mapping, Sequence

from transformers import PreTrainedModel

from ...cache.sol_cache import SOLCache
from ...selection.refresh_gain import RefreshGain
from ...selection.rule import SelectionRule
from ..executors import register_executor
from ..linear.planed_layers import make_planes, planed_layers
from ..mlp.executor import MLPExecutor
from ..step_part import StepPart


GAINS = {
    "fake": RefreshGain(((6.0, 0.002), (16.0, 0.0))),
    "int8": RefreshGain(),
    "nested": RefreshGain(((4.0, 0.022), (5.0, 0.009), (6.0, 0.004), (8.0, 0.0), (16.0, 0.0))),
}
"""By `bits_backend`. Measured, see docs/performance.md."""


@register_executor("bits")
class BitsExecutor(MLPExecutor):
    """Every MLP rounds its output to the number of bits in the plan; under `"nested"` linear layers read planes.

    Args:
        base (`PreTrainedModel`): The base.
    """

    axis = "bits"

    def __init__(self, base: PreTrainedModel):
        super().__init__(base)
        self._layers = planed_layers(base, [module for site in self.sites for module in site.modules])
        self._linear_parts: dict[Hashable, str] = {layer.part: layer.name for layer in self._layers if layer.part}

    def check_backend(self, bits_backend: str, max_plane_bytes: int | None = None) -> None:
        if bits_backend == "int8":
            for site in self.sites:
                site.check_int8()
        elif bits_backend == "nested":
            for site in self.sites:
                site.check_planes()
            make_planes(self._layers, max_plane_bytes)

    def parts_under(self, bits_backend: str, cache: SOLCache) -> Mapping[Hashable, str]:
        return self._linear_parts if bits_backend == "nested" else self.parts(cache)

    @classmethod
    def refresh_gain(cls, rule: SelectionRule, bits_backend: str) -> RefreshGain:
        return GAINS[bits_backend]

    @property
    def step_parts(self) -> Sequence[StepPart]:
        return (*super().step_parts, *(layer.part for layer in self._layers if layer.part))
