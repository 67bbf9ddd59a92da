# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Logits of actions from logits of levels."""

from collections.abc import Sequence

import torch


def joint_logits(level_logits: torch.Tensor, level_counts: Sequence[int]) -> torch.Tensor:
    """Logits of all actions from logits per level.

    Args:
        level_logits (`torch.Tensor` of shape `(..., sum(level_counts))`): Logits per level.
        level_counts (`Sequence[int]`): Number of levels of every axis.

    Returns:
        `torch.Tensor` of shape `(..., n_actions)`: in the order of [`ActionSpace`].
    """
    joint, *others = level_logits.split(tuple(level_counts), dim=-1)
    for logits in others:
        joint = (joint[..., :, None] + logits[..., None, :]).flatten(-2)
    return joint
