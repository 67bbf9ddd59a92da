# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Base class of the executors of the MLP axes: every MLP of the base runs as a [`StepMLP`]."""

from collections.abc import Hashable, Iterable, Mapping, Sequence

from transformers import PreTrainedModel

from ...cache.sol_cache import SOLCache
from ..executors import AxisExecutor, Change
from ..step_part import StepPart
from .discovery import find_mlps
from .step_mlp import StepMLP


class MLPExecutor(AxisExecutor):
    """Replaces the forward of every MLP by a [`StepMLP`].

    Args:
        base (`PreTrainedModel`): The base.
    """

    def __init__(self, base: PreTrainedModel):
        self.mlps = tuple(StepMLP.of(mlp) for mlp in find_mlps(base))
        self._parts: dict[Hashable, str] = {mlp: f"the MLP of layer {layer}" for layer, mlp in enumerate(self.mlps)}

    def changes(self) -> Iterable[Change]:
        return [Change("forward", mlp.module, mlp.install) for mlp in self.mlps]

    def parts(self, cache: SOLCache) -> Mapping[Hashable, str]:
        return self._parts

    def layers(self, cache: SOLCache) -> Sequence[int]:
        return range(len(self.mlps))

    @property
    def step_parts(self) -> Sequence[StepPart]:
        return self.mlps
