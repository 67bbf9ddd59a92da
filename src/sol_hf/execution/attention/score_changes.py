# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What some bases do with the scores of their attention, besides scaling: soft caps and learned sinks."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention


@dataclass(frozen=True, eq=False)
class ScoreChanges:
    """Changes to the scores of attention.

    Args:
        soft_cap (`float`, *optional*): Scaled scores `x` become `soft_cap * tanh(x / soft_cap)`.
        sinks (`torch.Tensor` of shape `(heads,)`, *optional*): Per query head the score of a key without a value,
            which takes its share of the softmax.
    """

    soft_cap: float | None = None
    sinks: torch.Tensor | None = None

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> "ScoreChanges":
        """Those that a module passes to its attention function."""
        return cls(arguments.get("softcap"), arguments.get("s_aux"))

    @property
    def is_none(self) -> bool:
        """Whether attention is a plain softmax of scaled products."""
        return self.soft_cap is None and self.sinks is None

    def capped(self, scores: torch.Tensor) -> torch.Tensor:
        """Scaled scores under the soft cap; `-inf`, of keys that are not read, stays."""
        if self.soft_cap is None:
            return scores
        return torch.where(scores.isneginf(), scores, torch.tanh(scores / self.soft_cap) * self.soft_cap)

    def weights(self, scores: torch.Tensor) -> torch.Tensor:
        """Attention weights for scaled scores, in float32 at least.

        Args:
            scores (`torch.Tensor` of shape `(rows, kv_heads, n, keys)`): `-inf` for keys that are not read. `n` is a
                multiple of the query heads of a key-value head, which alternate fastest.
        """
        scores = self.capped(scores)
        scores = scores if scores.dtype == torch.float64 else scores.float()
        if self.sinks is None:
            return scores.softmax(dim=-1)
        rows, kv_heads, lines, _ = scores.shape
        per_head = self.sinks.to(scores.dtype).view(1, kv_heads, 1, -1, 1)
        sinks = per_head.expand(rows, -1, lines // per_head.shape[3], -1, 1).reshape(rows, kv_heads, lines, 1)
        return torch.cat([scores, sinks], dim=-1).softmax(dim=-1)[..., :-1]


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scaling: float | None,
    changes: ScoreChanges,
) -> torch.Tensor:
    """Attention of the query heads of one token over keys.

    Args:
        query (`torch.Tensor` of shape `(rows, kv_heads, group, head_dim)`): Query heads by key-value head.
        key (`torch.Tensor` of shape `(rows, kv_heads, keys, head_dim)`): Keys.
        value (`torch.Tensor` of shape `(rows, kv_heads, keys, value_dim)`): Values.
        mask (`torch.BoolTensor`, broadcastable to `(rows, kv_heads, group, keys)`): Which keys are read.
        scaling (`float`, *optional*): Scale of the scores; `1 / sqrt(head_dim)` by default.
        changes ([`ScoreChanges`]): What is done with the scores.

    Returns:
        `torch.Tensor` of shape `(rows, kv_heads, group, value_dim)`.
    """
    if changes.is_none:
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = (query @ key.transpose(2, 3) * scale).masked_fill(~mask, -torch.inf)
    return changes.weights(scores).to(value.dtype) @ value
