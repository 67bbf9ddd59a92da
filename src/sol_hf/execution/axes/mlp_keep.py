# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The axis `mlp_keep`: MLPs see the largest channels of their input."""

from ..executors import register_executor
from ..mlp.executor import MLPExecutor


@register_executor("mlp_keep")
class MLPKeepExecutor(MLPExecutor):
    """Every MLP keeps the channels that the plan says.

    Args:
        base (`PreTrainedModel`): The base.
    """

    auto_refresh_below = 0.45  # docs/performance.md has the measurement
