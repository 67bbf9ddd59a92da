# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Triton: dense attention of the few tokens of a KV refresh over all keys in the cache's storage.

One program, or a few, computes the tokens of all query heads of a key-value head, so that a key is read once. The keys
are also divided among many programs, even with a single row: for one row and a long text, kernels that only divide the
queries leave most of a GPU idle. The number of keys is read on the device, so that the launch can be part of a CUDA
graph. There is no mask in memory: each of the last tokens sees the row's keys up to its own.
"""

import torch
import triton
import triton.language as tl
from torch.nn.functional import scaled_dot_product_attention

from . import triton_support
from .attention import LOG2_E, absorb, merge_parts, number_of_splits


BLOCK_TOKENS = 64
LEAST_BLOCKS = 4
"""Minimum number of blocks of keys in a part."""
MOST_QUERIES = 64
"""Most queries (tokens times query heads of a group) per program; a quarter in float32, without tensor cores."""


@triton.jit
def _attend_chunk(
    query, keys, values, first, count, peak, mass, sums, scale, kv_heads, slots, query_row, query_head, query_token,
    dim: tl.constexpr, value_dim: tl.constexpr, GROUP: tl.constexpr, TOKENS: tl.constexpr, SPLITS: tl.constexpr,
    WIDE: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    line, split = tl.program_id(0), tl.program_id(1)
    row, head = line // kv_heads, line % kv_heads
    held, begin_slot = tl.load(count + row).to(tl.int32), tl.load(first + row)
    share = (held + SPLITS * BLOCK_T - 1) // (SPLITS * BLOCK_T) * BLOCK_T
    end = tl.minimum((split + 1) * share, held)
    g = tl.program_id(2) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    d, v = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)
    token = g % TOKENS
    packed = (g < GROUP * TOKENS)[:, None]
    q_place = row * query_row + (head * GROUP + g // TOKENS) * query_head + token * query_token
    q = tl.load(query + q_place[:, None] + d[None, :], mask=packed & (d < dim)[None, :], other=0.0)
    if WIDE:
        q = q.to(tl.float32)
    last = held - TOKENS + token
    top = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_Q,), tl.float32)
    merged = tl.zeros((BLOCK_Q, BLOCK_V), tl.float32)
    for t in range(split * share, end, BLOCK_T):
        rank = t + tl.arange(0, BLOCK_T)
        slot = line.to(tl.int64) * slots + begin_slot + rank
        here = (rank < held)[:, None]
        k = tl.load(keys + slot[:, None] * dim + d[None, :], mask=here & (d < dim)[None, :], other=0.0)
        x = tl.load(values + slot[:, None] * value_dim + v[None, :], mask=here & (v < value_dim)[None, :], other=0.0)
        if WIDE:
            k, x = k.to(tl.float32), x.to(tl.float32)
        seen = rank[None, :] <= last[:, None]
        top, total, merged = absorb(q, k, x, seen, top, total, merged, scale)
    part = (line.to(tl.int64) * SPLITS + split) * GROUP * TOKENS + g
    tl.store(peak + part, top, mask=g < GROUP * TOKENS)
    tl.store(mass + part, total, mask=g < GROUP * TOKENS)
    tl.store(sums + part[:, None] * value_dim + v[None, :], merged, mask=packed & (v < value_dim)[None, :])


@torch.library.custom_op("sol_hf::attend_chunk", mutates_args=())
def attend_chunk(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    first_key: torch.Tensor,
    count: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """Causal attention of the last tokens of every row over all keys of the row, their own included.

    Products are accumulated in float32; half-precision weights are rounded before the second one, as in every fused
    attention.

    Args:
        query (`torch.Tensor` of shape `(rows, heads, tokens, head_dim)`): Queries of the last tokens; the last
            dimension has stride 1.
        keys (`torch.Tensor` of shape `(rows, kv_heads, slots, head_dim)`): Storage of the keys, contiguous.
        values (`torch.Tensor` of shape `(rows, kv_heads, slots, value_dim)`): Storage of the values, contiguous.
        first_key (`torch.Tensor` of shape `(rows,)`): Slot of a row's first real token.
        count (`torch.Tensor` of shape `(rows,)`): Keys of a row, at least `tokens`.
        scaling (`float`): Scale of the scores.

    Returns:
        `torch.Tensor` of shape `(rows, heads, tokens, value_dim)`.
    """
    rows, heads, tokens, dim = query.shape
    kv_heads, slots, value_dim = *keys.shape[1:3], values.shape[-1]
    lines, group = rows * kv_heads, heads // kv_heads
    pack, splits = group * tokens, number_of_splits(lines, triton.cdiv(slots, LEAST_BLOCKS))
    first_key, count = first_key.contiguous(), count.contiguous()
    peak = torch.empty(lines, splits, pack, dtype=torch.float32, device=query.device)
    mass, sums = torch.empty_like(peak), peak.new_empty(lines, splits, pack, value_dim)
    output = torch.empty(rows, heads, tokens, value_dim, dtype=query.dtype, device=query.device)
    # Triton's interpreter has no bfloat16 products; the compiled kernel uses tensor cores.
    wide = query.dtype == torch.float32 or query.device.type == "cpu"
    block_q, block_d, block_v = (max(triton.next_power_of_2(size), 16) for size in (pack, dim, value_dim))
    block_q = min(block_q, 16 if wide else MOST_QUERIES)
    with triton_support.on_device_of(query):
        _attend_chunk[(lines, splits, triton.cdiv(pack, block_q))](
            query, keys, values, first_key, count, peak, mass, sums, scaling * LOG2_E, kv_heads, slots,
            *query.stride()[:3], dim, value_dim, group, tokens, splits, wide, block_q,
            BLOCK_TOKENS, block_d, block_v,
        )  # fmt: skip
        merge_parts(peak, mass, sums, output)
    return output


@attend_chunk.register_fake
def _(query, keys, values, first_key, count, scaling):
    return query.new_empty(*query.shape[:3], values.shape[-1])


def attend_chunk_reference(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    first_key: torch.Tensor,
    count: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """The same as [`attend_chunk`] in plain torch."""
    rank = torch.arange(keys.shape[2], device=keys.device) - first_key[:, None]
    last = count[:, None] - query.shape[2] + torch.arange(query.shape[2], device=keys.device)
    seen = (rank[:, None] >= 0) & (rank[:, None] <= last[:, :, None])
    real = ((rank >= 0) & (rank < count[:, None]))[:, None, :, None]
    group = query.shape[1] // keys.shape[1]
    keys, values = (x.masked_fill(~real, 0).repeat_interleave(group, dim=1) for x in (keys, values))
    return scaled_dot_product_attention(query, keys, values, attn_mask=seen[:, None], scale=scaling)
