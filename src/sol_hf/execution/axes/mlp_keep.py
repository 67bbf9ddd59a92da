# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The axis `mlp_keep`: MLPs use the largest channels of their input only."""

from ..executors import register_executor
from ..mlp.executor import MLPExecutor


@register_executor("mlp_keep")
class MLPKeepExecutor(MLPExecutor):
    """Every MLP keeps the share of its input channels that is in the plan.

    Args:
        base (`PreTrainedModel`): The base.
    """

    auto_refresh_below = 0.45  # measured, see docs/performance.md
