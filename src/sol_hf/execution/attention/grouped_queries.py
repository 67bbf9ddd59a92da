# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Grouped-query attention in plain torch, without a copy of the keys for every query head."""

import torch

from .score_changes import ScoreChanges, attend


PLAIN_SCORES = ScoreChanges()


def fold_groups(query: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """Group queries by key-value head: `(rows, heads, tokens, dim)` to `(rows, kv_heads, group * tokens, dim)`."""
    rows, heads, tokens, dim = query.shape
    return query.reshape(rows, kv_heads, heads // kv_heads * tokens, dim)


def attend_grouped(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scaling: float | None,
    changes: ScoreChanges = PLAIN_SCORES,
) -> torch.Tensor:
    """Attention of new tokens over all keys. The query heads of a group are treated as additional tokens of one head.

    Args:
        query (`torch.Tensor` of shape `(rows, heads, tokens, head_dim)`): Queries of the new tokens.
        key (`torch.Tensor` of shape `(rows, kv_heads, slots, head_dim)`): All cached keys.
        value (`torch.Tensor` of shape `(rows, kv_heads, slots, value_dim)`): All cached values.
        mask (`torch.BoolTensor` of shape `(rows or 1, 1 or heads, tokens, slots)`): Which keys a token sees.
        scaling (`float`, *optional*): Scale of the scores; `1 / sqrt(head_dim)` by default.
        changes ([`ScoreChanges`], *optional*): What is done with the scores; only with a single token.

    Returns:
        `torch.Tensor` of shape `(rows, tokens, heads, value_dim)`.
    """
    rows, heads, tokens, _ = query.shape
    kv_heads, slots = key.shape[1], key.shape[2]
    group = heads // kv_heads
    if mask.shape[1] == 1:
        folded_mask = mask.expand(-1, group, -1, -1).reshape(len(mask), 1, group * tokens, slots)
    else:
        folded_mask = mask.reshape(len(mask), kv_heads, group * tokens, slots)
    output = attend(fold_groups(query, kv_heads), key, value, folded_mask, scaling, changes)
    return output.reshape(rows, heads, tokens, -1).transpose(1, 2).contiguous()
