# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Logits of actions from logits of levels."""

from collections.abc import Sequence

import torch


def joint_logits(level_logits: torch.Tensor, level_counts: Sequence[int]) -> torch.Tensor:
    """Logits of all actions from logits per level.

    Args:
        level_logits (`torch.Tensor` of shape `(..., sum(level_counts))`): Logits per level.
        level_counts (`Sequence[int]`): Levels of every axis.

    Returns:
        `torch.Tensor` of shape `(..., n_actions)`: in the order of [`ActionSpace`].
    """
    token_keep, mlp_keep, bits = level_logits.split(tuple(level_counts), dim=-1)
    outer = token_keep[..., :, None] + mlp_keep[..., None, :]
    return (outer[..., None] + bits[..., None, None, :]).flatten(-3)
