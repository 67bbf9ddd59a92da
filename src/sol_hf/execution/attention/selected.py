# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Attention of a decode step over selected keys, in plain torch."""

import functools
from collections.abc import Callable

import torch
from torch.nn.functional import scaled_dot_product_attention

from ...selection.quest import page_bounds, page_scores, select_quest
from ...selection.ranking import group_queries
from ...selection.recency import select_recency
from ...selection.relevancy import select_relevancy
from ...selection.rule import Selection
from ..plan import StepPlan
from .paths import attend, attend_masked, holds, usable_kernel


def attend_sparsely(
    plan: StepPlan,
    token_keep: torch.Tensor,
    layer_idx: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
) -> torch.Tensor:
    """[`attend_selected`], or a faster way to the same numbers, as the plan's backend says."""
    arguments = (plan, token_keep, layer_idx, query, key, value, scaling)
    ways: dict[str, Callable] = {"reference": functools.partial(attend_selected, *arguments)}
    kernel = usable_kernel(plan, layer_idx, query, key, value, scaling)
    if kernel is not None:
        layer = plan.cache.layers[layer_idx]
        ways["fast"] = lambda: kernel(query, layer)
    else:
        ways["masked"] = functools.partial(_attend_masked, *arguments)
    return attend(plan, query, key, ways)


def attend_selected(
    plan: StepPlan,
    token_keep: torch.Tensor,
    layer_idx: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
) -> torch.Tensor:
    """Attention of one new token per row over the keys that the plan's criterion selects.

    Args:
        plan ([`StepPlan`]): Cache and selection rule.
        token_keep (`torch.Tensor` of shape `(rows,)`): Fraction of the cached tokens to read.
        layer_idx (`int`): Layer of the cache that `key` and `value` come from.
        query (`torch.Tensor` of shape `(rows, heads, 1, head_dim)`): Query of the new token.
        key (`torch.Tensor` of shape `(rows, kv_heads, slots, head_dim)`): All cached keys.
        value (`torch.Tensor` of shape `(rows, kv_heads, slots, head_dim)`): All cached values.
        scaling (`float`, *optional*): Scale of the scores; `1 / sqrt(head_dim)` by default.

    Returns:
        `torch.Tensor` of shape `(rows, 1, heads, head_dim)`.
    """
    rows, heads, _, dim = query.shape
    kv_heads, slots = key.shape[1], key.shape[2]
    selection, first, start = select_keys(plan, token_keep, layer_idx, query, key)
    slot = selection.ranks + first[:, None, None]
    in_use = selection.in_use & (slot >= start[:, None, None]) & (slot < slots)
    per_head = slot.shape[1] == heads and heads != kv_heads
    chosen_key, chosen_value = _gather(plan, layer_idx, key, value, slot.clamp(0, slots - 1), heads if per_head else 0)
    if not per_head:
        query = query.reshape(rows, kv_heads, heads // kv_heads, dim)
    output = scaled_dot_product_attention(
        query, chosen_key, chosen_value, attn_mask=in_use[:, :, None, :], scale=scaling
    )
    return output.reshape(rows, 1, heads, value.shape[-1])


def _attend_masked(
    plan: StepPlan,
    token_keep: torch.Tensor,
    layer_idx: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
) -> torch.Tensor:
    """[`attend_selected`] by a mask instead of copies."""
    return attend_masked(*select_keys(plan, token_keep, layer_idx, query, key), query, key, value, scaling)


def select_keys(
    plan: StepPlan, token_keep: torch.Tensor, layer_idx: int, query: torch.Tensor, key: torch.Tensor
) -> tuple[Selection, torch.Tensor, torch.Tensor]:
    """What a step reads, the slot of rank 0 and the first slot with a real key; arguments of [`attend_selected`]."""
    first, start = _row_origins(plan, layer_idx, len(query), key.shape[2], key.device)
    return _select(plan, token_keep.to(key.device), layer_idx, query, key, first, start), first, start


def _row_origins(plan: StepPlan, layer_idx: int, rows: int, slots: int, device: torch.device):
    """Slot at which every row's page 0 begins, and its first slot with a real key, each of shape `(rows,)`."""
    padding = plan.cache.padding
    padding = torch.zeros(rows, dtype=torch.long, device=device) if padding is None else padding.to(device)
    dropped = plan.cache.layers[layer_idx].get_seq_length() - slots
    if dropped == 0:
        return padding, padding
    # A sliding layer shows its last `slots` keys: pages stay aligned to the row's first token, which is long gone.
    offset = (padding - dropped).clamp(min=0)
    phase = (dropped - padding).clamp(min=0) % plan.rule.page_size
    return offset - phase, offset


def _select(
    plan: StepPlan,
    token_keep: torch.Tensor,
    layer_idx: int,
    query: torch.Tensor,
    key: torch.Tensor,
    first: torch.Tensor,
    start: torch.Tensor,
) -> Selection:
    rule, slots = plan.rule, key.shape[2]
    grouped = group_queries(query, key.shape[1])
    if rule.criterion == "quest":
        layer = plan.cache.layers[layer_idx]
        if holds(layer, key):
            upper, lower = layer.page_index(first, plan.cache.padding_range)
        else:
            pages = slots // rule.page_size + 2
            upper, lower = page_bounds(key, rule.page_size, first, start, pages)
        scores = page_scores(grouped, upper, lower)
        return select_quest(scores, token_keep, first, start, slots, rule)
    if rule.criterion == "relevancy":
        return select_relevancy(grouped @ key.transpose(2, 3), token_keep, first, start, rule)
    return select_recency(token_keep, first, start, slots, rule)


def _gather(
    plan: StepPlan, layer_idx: int, key: torch.Tensor, value: torch.Tensor, slot: torch.Tensor, heads: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values at `slot` `(rows, H, m)`, of shape `(rows, H', m, head_dim)`; H' is `heads`, else kv_heads."""
    rows, kv_heads = key.shape[:2]
    layer = plan.cache.layers[layer_idx]
    if holds(layer, key, value):
        flat_key, flat_value, stride = layer.flat_store()
    else:
        flat_key, flat_value, stride = key.flatten(0, 2), value.flatten(0, 2), key.shape[2]
    wide = heads or kv_heads
    kv_head = torch.arange(wide, device=key.device) // (wide // kv_heads)
    base = (torch.arange(rows, device=key.device)[:, None] * kv_heads + kv_head) * stride
    index = (slot + base[:, :, None]).flatten()
    shape = (rows, wide, slot.shape[-1], -1)
    return flat_key.index_select(0, index).view(shape), flat_value.index_select(0, index).view(shape)
