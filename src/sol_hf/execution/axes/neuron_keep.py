# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The axis `neuron_keep`: the last projection of MLPs reads the largest neurons only."""

from collections.abc import Iterable, Sequence

from transformers import PreTrainedModel

from ...selection.refresh_gain import RefreshGain
from ...selection.rule import SelectionRule
from ..executors import Change, register_executor
from ..mlp.executor import MLPExecutor
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

    axis = "neuron_keep"

    def __init__(self, base: PreTrainedModel):
        super().__init__(base)
        self._readers = tuple(site.part("mlp_keep") for site in self.sites)
        """A fast path of a whole MLP calls its last projection."""
        for site in self.sites:
            site.keep_neurons()

    def changes(self) -> Iterable[Change]:
        for part in self._readers:
            yield Change(part.change_name, part.module, part.install)
        yield from super().changes()

    @classmethod
    def refresh_gain(cls, rule: SelectionRule, bits_backend: str) -> RefreshGain:
        return GAIN

    @property
    def step_parts(self) -> Sequence[StepPart]:
        return (*self._readers, *super().step_parts)
