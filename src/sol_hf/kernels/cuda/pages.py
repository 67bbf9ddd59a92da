# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Triton: the page index on a GPU. One kernel writes new tokens into cache and page index, another scores the pages.

`first_key` `(rows,)` is the slot of a row's first real token, and `count` `(rows,)` the number of its keys. Both are
on the device. Slot `first_key + rank` holds the key of that rank, which belongs to page `rank // page_size`.
"""

import torch
import triton
import triton.language as tl

from ...selection.pages import page_scores
from ...selection.ranking import group_queries
from . import triton_support
from .select_pages import wanted_units


@triton.jit
def _append_tokens(
    key, value, key_store, value_store, upper, lower, first, count, kv_heads, slots, pages, key_row, key_head,
    key_token, value_row, value_head, value_token, dim: tl.constexpr, value_dim: tl.constexpr, TOKENS: tl.constexpr,
    PAGE: tl.constexpr, INDEXED: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0) // kv_heads, tl.program_id(0) % kv_heads
    line = tl.program_id(0).to(tl.int64)
    held = tl.load(count + row).to(tl.int32)
    page = (held - TOKENS) // PAGE + tl.program_id(1)
    place = tl.arange(0, BLOCK_P)
    rank = page * PAGE + place
    slot = line * slots + tl.load(first + row) + rank
    token = rank - (held - TOKENS)
    here = (place < PAGE) & (rank < held)
    is_new, is_old = (here & (token >= 0))[:, None], (here & (token < 0))[:, None]
    d, v = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)
    in_key, in_value = (d < dim)[None, :], (v < value_dim)[None, :]
    from_key = key + row * key_row + head * key_head + token[:, None] * key_token + d[None, :]
    from_value = value + row * value_row + head * value_head + token[:, None] * value_token + v[None, :]
    new = tl.load(from_key, mask=is_new & in_key, other=0.0)
    new_value = tl.load(from_value, mask=is_new & in_value, other=0.0)
    tl.store(key_store + slot[:, None] * dim + d[None, :], new, mask=is_new & in_key)
    tl.store(value_store + slot[:, None] * value_dim + v[None, :], new_value, mask=is_new & in_value)
    if INDEXED:
        old = tl.load(key_store + slot[:, None] * dim + d[None, :], mask=is_old & in_key, other=0.0)
        x = tl.where(is_new, new, old).to(tl.float32)
        bound = (line * pages + page) * dim + d
        live = d < tl.where(page * PAGE < held, dim, 0)
        high = tl.max(tl.where(here[:, None], x, float("-inf")), axis=0)
        low = tl.min(tl.where(here[:, None], x, float("inf")), axis=0)
        tl.store(upper + bound, high, mask=live)
        tl.store(lower + bound, low, mask=live)


@torch.library.custom_op("sol_hf::append_tokens", mutates_args=("key_store", "value_store", "upper", "lower"))
def append_tokens(
    key: torch.Tensor,
    value: torch.Tensor,
    key_store: torch.Tensor,
    value_store: torch.Tensor,
    upper: torch.Tensor | None,
    lower: torch.Tensor | None,
    first_key: torch.Tensor,
    count: torch.Tensor,
    page_size: int,
) -> None:
    """Write keys and values of the last tokens into their slots, and compute the bounds of their pages, in place.

    Args:
        key (`torch.Tensor` of shape `(rows, kv_heads, tokens, head_dim)`): Keys of the new tokens; the last dimension
            has stride 1.
        value (`torch.Tensor` of shape `(rows, kv_heads, tokens, value_dim)`): Their values.
        key_store (`torch.Tensor` of shape `(rows, kv_heads, slots, head_dim)`): Storage of keys, contiguous.
        value_store (`torch.Tensor` of shape `(rows, kv_heads, slots, value_dim)`): Storage of values, contiguous.
        upper (`torch.Tensor` of shape `(rows, kv_heads, pages, head_dim)`, *optional*): Maxima of the pages,
            contiguous; without them no bounds are kept.
        lower (`torch.Tensor` of shape `(rows, kv_heads, pages, head_dim)`, *optional*): Minima, likewise.
        first_key (`torch.Tensor` of shape `(rows,)`): Slot of the row's first real token.
        count (`torch.Tensor` of shape `(rows,)`): Keys of the row, the new ones included.
        page_size (`int`): Keys in a page.
    """
    rows, kv_heads, slots, dim = key_store.shape
    value_dim, tokens = value_store.shape[-1], key.shape[2]
    first_key, count = first_key.contiguous(), count.contiguous()
    with triton_support.on_device_of(key):
        _append_tokens[(rows * kv_heads, 1 + triton.cdiv(tokens - 1, page_size))](
            key, value, key_store, value_store, upper, lower, first_key, count, kv_heads, slots,
            0 if upper is None else upper.shape[2], *key.stride()[:3], *value.stride()[:3], dim, value_dim, tokens,
            page_size, upper is not None, triton.next_power_of_2(page_size), triton.next_power_of_2(dim),
            triton.next_power_of_2(value_dim),
        )  # fmt: skip


@append_tokens.register_fake
def _(key, value, key_store, value_store, upper, lower, first_key, count, page_size):
    return None


def append_tokens_reference(key, value, key_store, value_store, upper, lower, first_key, count, page_size) -> None:
    """The same as [`append_tokens`] in plain torch."""
    for row, (begin, held) in enumerate(zip(first_key.tolist(), count.tolist(), strict=True)):
        new = held - key.shape[2]
        key_store[row, :, begin + new : begin + held] = key[row]
        value_store[row, :, begin + new : begin + held] = value[row]
        for page in range(new // page_size, -(-held // page_size) if upper is not None else 0):
            keys = key_store[row, :, begin + page * page_size : begin + min((page + 1) * page_size, held)]
            upper[row, :, page], lower[row, :, page] = keys.amax(dim=1), keys.amin(dim=1)


@triton.jit
def _score_pages(
    query, upper, lower, scores, token_keep, count, kv_heads, pages, capacity, query_row, query_head,
    dim: tl.constexpr, GROUP: tl.constexpr, PAGE: tl.constexpr, SHARED: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    line = tl.program_id(0).to(tl.int64)
    row, head = tl.program_id(0) // kv_heads, tl.program_id(0) % kv_heads
    keys = tl.load(count + row).to(tl.int32)
    live = (keys + PAGE - 1) // PAGE
    page = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    rest = wanted_units(tl.load(token_keep + row).to(tl.float32), keys, PAGE) < live
    if rest & (tl.program_id(1) * BLOCK_P < live):
        d = tl.arange(0, BLOCK_D)
        inside = (page < live)[:, None] & (d < dim)[None, :]
        place = (line * capacity + page)[:, None] * dim + d[None, :]
        high = tl.load(upper + place, mask=inside, other=0.0).to(tl.float32)
        low = tl.load(lower + place, mask=inside, other=0.0).to(tl.float32)
        total = tl.zeros((BLOCK_P,), tl.float32)
        for g in tl.static_range(GROUP):
            q = tl.load(query + row * query_row + (head * GROUP + g) * query_head + d, mask=d < dim, other=0.0)
            q = q.to(tl.float32)[None, :]
            bound = tl.sum(tl.maximum(q * high, q * low), axis=1)
            if SHARED:
                total += bound
            else:
                tl.store(scores + (line * GROUP + g) * pages + page, bound, mask=page < live)
        if SHARED:
            tl.store(scores + line * pages + page, total, mask=page < live)


@torch.library.custom_op("sol_hf::score_pages", mutates_args=())
def score_pages(
    query: torch.Tensor,
    upper: torch.Tensor,
    lower: torch.Tensor,
    token_keep: torch.Tensor,
    count: torch.Tensor,
    pages: int,
    page_size: int,
    shared: bool,
) -> torch.Tensor:
    """Upper bounds of `q . k` over the keys of every page, in float32.

    Args:
        query (`torch.Tensor` of shape `(rows, heads, 1, head_dim)`): Queries of the step's token; the last dimension
            has stride 1.
        upper (`torch.Tensor` of shape `(rows, kv_heads, capacity, head_dim)`): Maxima of the pages, contiguous.
        lower (`torch.Tensor` of shape `(rows, kv_heads, capacity, head_dim)`): Minima of the pages, contiguous.
        token_keep (`torch.Tensor` of shape `(rows,)`): A row that keeps all its pages is not scored.
        count (`torch.Tensor` of shape `(rows,)`): Keys of a row.
        pages (`int`): Pages to score, at most `capacity`.
        page_size (`int`): Keys in a page.
        shared (`bool`): Whether the bounds of the query heads of a key-value head are summed.

    Returns:
        `torch.Tensor` of shape `(rows, H, pages)`, uninitialized for pages without keys. H is `kv_heads` if `shared`,
        else `heads`.
    """
    rows, heads, _, dim = query.shape
    kv_heads, capacity = upper.shape[1:3]
    token_keep, count = token_keep.contiguous(), count.contiguous()
    scores = torch.empty(rows, kv_heads if shared else heads, pages, dtype=torch.float32, device=query.device)
    block = 32 if dim > 64 else 64
    with triton_support.on_device_of(query):
        _score_pages[(rows * kv_heads, triton.cdiv(pages, block))](
            query, upper, lower, scores, token_keep, count, kv_heads, pages, capacity, query.stride(0),
            query.stride(1), dim, heads // kv_heads, page_size, shared, block, triton.next_power_of_2(dim),
        )  # fmt: skip
    return scores


@score_pages.register_fake
def _(query, upper, lower, token_keep, count, pages, page_size, shared):
    heads = upper.shape[1] if shared else query.shape[1]
    return query.new_empty(query.shape[0], heads, pages, dtype=torch.float32)


def score_pages_reference(
    query: torch.Tensor, upper: torch.Tensor, lower: torch.Tensor, pages: int, shared: bool
) -> torch.Tensor:
    """The same as [`score_pages`] in plain torch, for all pages, also those without keys."""
    upper, lower = upper[:, :, :pages].float(), lower[:, :, :pages].float()
    scores = page_scores(group_queries(query.float(), upper.shape[1]), upper, lower)
    return scores.sum(dim=2) if shared else scores.flatten(1, 2)
