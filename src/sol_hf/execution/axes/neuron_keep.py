# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The axis `neuron_keep`: the last projection of MLPs reads the largest neurons only."""

from collections.abc import Hashable, Iterable, Mapping, Sequence

from transformers import PreTrainedModel

from ...cache.sol_cache import SOLCache
from ...selection.refresh_gain import RefreshGain
from ...selection.rule import SelectionRule
from ..executors import Change, register_executor
from ..mlp.discovery import find_last_projections
from ..mlp.executor import MLPExecutor
from ..mlp.step_down import StepDown
from ..step_part import StepPart


GAIN = RefreshGain(((0.2, 0.106), (0.3, 0.043), (0.5, 0.007), (1.0, 0.0)))
"""Measured, see docs/performance.md."""


@register_executor("neuron_keep")
class NeuronKeepExecutor(MLPExecutor):
    """The last projection of every MLP keeps the share of its inputs that is in the plan.

    The neurons are chosen where they are read, behind whatever computes them. So the same code serves all layouts of
    MLPs, also with adapters on their projections.

    Args:
        base (`PreTrainedModel`): The base.
    """

    def __init__(self, base: PreTrainedModel):
        super().__init__(base)
        lasts = find_last_projections(base, [mlp.module for mlp in self.mlps])
        self._downs = tuple(StepDown.of(last) for last in lasts)
        self._down_parts: dict[Hashable, str] = {
            down: f"the last projection of the MLP of layer {layer}" for layer, down in enumerate(self._downs)
        }
        for mlp, down in zip(self.mlps, self._downs, strict=True):
            mlp.down = down

    def changes(self) -> Iterable[Change]:
        yield from super().changes()
        yield from (Change("last projection", down.module, down.install) for down in self._downs)

    def parts(self, cache: SOLCache) -> Mapping[Hashable, str]:
        return self._down_parts

    @classmethod
    def refresh_gain(cls, rule: SelectionRule, bits_backend: str) -> RefreshGain:
        return GAIN

    @property
    def step_parts(self) -> Sequence[StepPart]:
        return (*self.mlps, *self._downs)
