# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The axis `mlp_keep`: MLPs use the largest channels of their input only."""

from ...selection.refresh_gain import RefreshGain
from ...selection.rule import SelectionRule
from ..executors import register_executor
from ..mlp.executor import MLPExecutor


GAIN = RefreshGain(((0.5, 0.072), (0.7, 0.006), (1.0, 0.0)))
"""Measured, see docs/performance.md."""


@register_executor("mlp_keep")
class MLPKeepExecutor(MLPExecutor):
    """Every MLP keeps the share of its input channels that is in the plan.

    Args:
        base (`PreTrainedModel`): The base.
    """

    axis = "mlp_keep"

    @classmethod
    def refresh_gain(cls, rule: SelectionRule, bits_backend: str) -> RefreshGain:
        return GAIN
