# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The dense attention of one layer in a KV refresh, and all of its implementations.

If none of them can be used, the base's own attention is the fallback.
"""

from dataclasses import dataclass

import torch
from transformers.cache_utils import CacheLayerMixin

from ...dispatch import Operation
from ...plan import RefreshPlan


@dataclass(frozen=True, eq=False)
class RefreshAttention:
    """Attention of the tokens of a KV refresh over all keys.

    Args:
        plan ([`RefreshPlan`]): Cache and backend.
        layer_idx (`int`): Layer of the cache that `key` and `value` come from.
        query (`torch.Tensor` of shape `(rows, heads, tokens, head_dim)`): Queries of the tokens.
        key (`torch.Tensor` of shape `(rows, kv_heads, slots, head_dim)`): All cached keys.
        value (`torch.Tensor` of shape `(rows, kv_heads, slots, value_dim)`): All cached values.
        mask (`torch.BoolTensor` of shape `(rows or 1, 1 or heads, tokens, slots)`, *optional*): Which keys a token
            sees; a base may pass another kind of mask.
        scaling (`float`, *optional*): Scale of the scores; `1 / sqrt(head_dim)` by default.
    """

    plan: RefreshPlan
    layer_idx: int
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: object
    scaling: float | None

    @property
    def layer(self) -> CacheLayerMixin:
        """The layer of the cache."""
        return self.plan.cache.layers[self.layer_idx]

    @property
    def group_mask(self) -> torch.Tensor | None:
        """The mask, if it is a tensor per token and key and query heads share key-value heads; else `None`."""
        is_grouped = self.query.shape[1] > self.key.shape[1]
        return self.mask if is_grouped and isinstance(self.mask, torch.Tensor) and self.mask.dim() == 4 else None


REFRESH_ATTENTION: Operation[RefreshAttention] = Operation(
    "implementation of a refresh's attention", package=__package__
)
"""Implementations of a refresh's attention by name."""


def attend_refresh(call: RefreshAttention) -> torch.Tensor | None:
    """Attention of the tokens of a KV refresh, `(rows, tokens, heads, value_dim)`.

    `None` if no implementation can be used, or if the mask may do more than hide keys.

    Raises:
        ValueError: in a captured forward, if the Triton kernel cannot be used.
    """
    if isinstance(call.mask, torch.Tensor) and call.mask.dtype != torch.bool:
        return None
    return REFRESH_ATTENTION.run(call, call.plan.backend)
