# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Triton: the page index of a decode step. One kernel writes the new token into it, one scores its pages.

`first` `(rows,)` is the slot of a row's first real token and `count` `(rows,)` the number of its keys, both on the
device: slot `first + rank` holds the key of that rank, and page `rank // page_size` describes it.
"""

import torch
import triton
import triton.language as tl

from ..criteria import group_queries, page_scores
from . import triton_support
from .triton_select import wanted_units


@triton.jit
def _append_token(
    key, value, key_store, value_store, upper, lower, first, count, kv_heads, slots, pages, key_row, key_head,
    value_row, value_head, dim: tl.constexpr, value_dim: tl.constexpr, PAGE: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0) // kv_heads, tl.program_id(0) % kv_heads
    line = tl.program_id(0).to(tl.int64)
    d, v = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)
    rank = tl.load(count + row) - 1
    slot = tl.load(first + row) + rank
    new = tl.load(key + row * key_row + head * key_head + d, mask=d < dim)
    tl.store(key_store + (line * slots + slot) * dim + d, new, mask=d < dim)
    new_value = tl.load(value + row * value_row + head * value_head + v, mask=v < value_dim)
    tl.store(value_store + (line * slots + slot) * value_dim + v, new_value, mask=v < value_dim)
    bound = (line * pages + rank // PAGE) * dim + d
    begun = d < tl.where(rank % PAGE > 0, dim, 0)
    x = new.to(tl.float32)
    high = tl.load(upper + bound, mask=begun, other=float("-inf")).to(tl.float32)
    low = tl.load(lower + bound, mask=begun, other=float("inf")).to(tl.float32)
    tl.store(upper + bound, tl.maximum(x, high), mask=d < dim)
    tl.store(lower + bound, tl.minimum(x, low), mask=d < dim)


@torch.library.custom_op("sol_hf::append_token", mutates_args=("key_store", "value_store", "upper", "lower"))
def append_token(
    key: torch.Tensor,
    value: torch.Tensor,
    key_store: torch.Tensor,
    value_store: torch.Tensor,
    upper: torch.Tensor,
    lower: torch.Tensor,
    first: torch.Tensor,
    count: torch.Tensor,
    page_size: int,
) -> None:
    """Write a token's key and value into their slot, and its key into the bounds of its page, in place.

    Args:
        key (`torch.Tensor` of shape `(rows, kv_heads, 1, head_dim)`): Key of the new token, the last dimension dense.
        value (`torch.Tensor` of shape `(rows, kv_heads, 1, value_dim)`): Its value.
        key_store (`torch.Tensor` of shape `(rows, kv_heads, slots, head_dim)`): Where keys go, contiguous.
        value_store (`torch.Tensor` of shape `(rows, kv_heads, slots, value_dim)`): Where values go, contiguous.
        upper (`torch.Tensor` of shape `(rows, kv_heads, pages, head_dim)`): Maxima of the pages, contiguous.
        lower (`torch.Tensor` of shape `(rows, kv_heads, pages, head_dim)`): Minima of the pages, contiguous.
        first (`torch.Tensor` of shape `(rows,)`): Slot of the row's first real token.
        count (`torch.Tensor` of shape `(rows,)`): Keys of the row, the new one included.
        page_size (`int`): Keys in a page.
    """
    rows, kv_heads, slots, dim = key_store.shape
    value_dim = value_store.shape[-1]
    first, count = first.contiguous(), count.contiguous()
    with triton_support.on_device_of(key):
        _append_token[(rows * kv_heads,)](
            key, value, key_store, value_store, upper, lower, first, count, kv_heads, slots, upper.shape[2],
            key.stride(0), key.stride(1), value.stride(0), value.stride(1), dim, value_dim, page_size,
            triton.next_power_of_2(dim), triton.next_power_of_2(value_dim), num_warps=1,
        )  # fmt: skip


@append_token.register_fake
def _(key, value, key_store, value_store, upper, lower, first, count, page_size):
    return None


def append_token_reference(key, value, key_store, value_store, upper, lower, first, count, page_size) -> None:
    """What [`append_token`] does, in plain torch."""
    rows = torch.arange(len(key), device=key.device)
    rank = count.long() - 1
    slot, page = first + rank, rank // page_size
    key_store[rows, :, slot], value_store[rows, :, slot] = key[:, :, 0], value[:, :, 0]
    begins = (rank % page_size == 0)[:, None, None]
    upper[rows, :, page] = torch.where(begins, key[:, :, 0], torch.maximum(upper[rows, :, page], key[:, :, 0]))
    lower[rows, :, page] = torch.where(begins, key[:, :, 0], torch.minimum(lower[rows, :, page], key[:, :, 0]))


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
        query (`torch.Tensor` of shape `(rows, heads, 1, head_dim)`): Of the step's token, the last dimension dense.
        upper (`torch.Tensor` of shape `(rows, kv_heads, capacity, head_dim)`): Maxima of the pages, contiguous.
        lower (`torch.Tensor` of shape `(rows, kv_heads, capacity, head_dim)`): Minima of the pages, contiguous.
        token_keep (`torch.Tensor` of shape `(rows,)`): A row that keeps all its pages is not scored.
        count (`torch.Tensor` of shape `(rows,)`): Keys of a row.
        pages (`int`): Pages to score, at most `capacity`.
        page_size (`int`): Keys in a page.
        shared (`bool`): Whether the bounds of the query heads of a key-value head are summed.

    Returns:
        `torch.Tensor` of shape `(rows, H, pages)`: not set for pages without keys. H is `kv_heads` if `shared`, else
        `heads`.
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
    """What [`score_pages`] computes, in plain torch, for every page whether it has keys or not."""
    upper, lower = upper[:, :, :pages].float(), lower[:, :, :pages].float()
    scores = page_scores(group_queries(query.float(), upper.shape[1]), upper, lower)
    return scores.sum(dim=2) if shared else scores.flatten(1, 2)
