# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Triton: attention of one token per row over chosen pages, without copying them.

The pages of a head are divided among several programs. The number of pages is read on the device: for a row with a
small budget the programs are shorter, and there are as many as for other rows. Each program has a running softmax, and
a second kernel merges the parts. (Merging in the program that finishes last took 50% longer.) If all query heads of a
key-value head read the same pages, one program computes all of them and reads every key once.
"""

import torch
import triton
import triton.language as tl
from torch.nn.functional import scaled_dot_product_attention

from . import triton_support


PROGRAMS = 256
"""Number of programs to divide the work among: as many as the 132 multiprocessors of an H100 run at a time."""
BLOCK_TOKENS = 64
LOG2_E = 1.4426950408889634


@triton.jit
def absorb(q, k, x, real, top, total, merged, scale):
    """Adds a block of keys and values to a running softmax: its maximum, sum of weights, and weighted values."""
    logits = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    logits = tl.where(real, logits, float("-inf"))
    new_top = tl.maximum(top, tl.max(logits, axis=1))
    shift = tl.where(new_top == float("-inf"), 0.0, new_top)
    weight = tl.exp2(logits - shift[:, None])
    fade = tl.exp2(top - shift)
    total = total * fade + tl.sum(weight, axis=1)
    merged = merged * fade[:, None] + tl.dot(weight.to(x.dtype), x, input_precision="ieee")
    return new_top, total, merged


@triton.jit
def _merge_parts(
    peak, mass, sums, output, value_dim: tl.constexpr, PACK: tl.constexpr, SPLITS: tl.constexpr, BLOCK_V: tl.constexpr
):
    line, g = tl.program_id(0) // PACK, tl.program_id(0) % PACK
    v = tl.arange(0, BLOCK_V)
    part = (line.to(tl.int64) * SPLITS + tl.arange(0, SPLITS)) * PACK + g
    top = tl.load(peak + part)
    weight = tl.exp2(top - tl.max(top, axis=0))
    total = tl.sum(weight * tl.load(mass + part), axis=0)
    inside = (v < value_dim)[None, :]
    x = tl.load(sums + part[:, None] * value_dim + v[None, :], mask=inside, other=0.0)
    merged = tl.sum(x * weight[:, None], axis=0) / total
    place = output + tl.program_id(0).to(tl.int64) * value_dim + v
    tl.store(place, merged.to(output.dtype.element_ty), mask=v < value_dim)


@triton.jit
def _attend_pages(
    query, keys, values, chosen, chosen_count, first, count, peak, mass, sums, scale, heads, kv_heads, slots, pages,
    query_row, query_head, dim: tl.constexpr, value_dim: tl.constexpr, PACK: tl.constexpr, PAGE: tl.constexpr,
    SPLITS: tl.constexpr, WIDE: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
):  # fmt: skip
    line, split = tl.program_id(0), tl.program_id(1)
    row, head = line // heads, line % heads
    kv_line = (row * kv_heads + head // (heads // kv_heads)).to(tl.int64)
    number, held = tl.load(chosen_count + line), tl.load(count + row).to(tl.int32)
    begin_slot = tl.load(first + row)
    share = (number + SPLITS - 1) // SPLITS
    end = tl.minimum((split + 1) * share, number) * PAGE
    g, d, v = tl.arange(0, BLOCK_Q), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)
    packed = (g < PACK)[:, None]
    q_place = row * query_row + (head * PACK + g)[:, None] * query_head + d[None, :]
    q = tl.load(query + q_place, mask=packed & (d < dim)[None, :], other=0.0)
    if WIDE:
        q = q.to(tl.float32)
    top = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_Q,), tl.float32)
    merged = tl.zeros((BLOCK_Q, BLOCK_V), tl.float32)
    for t in range(split * share * PAGE, end, BLOCK_T):
        place = t + tl.arange(0, BLOCK_T)
        page = tl.load(chosen + line.to(tl.int64) * pages + place // PAGE, mask=place < end, other=0)
        rank = page * PAGE + place % PAGE
        real = (place < end) & (rank < held)
        slot = kv_line * slots + begin_slot + rank
        k = tl.load(keys + slot[:, None] * dim + d[None, :], mask=real[:, None] & (d < dim)[None, :], other=0.0)
        v_mask = real[:, None] & (v < value_dim)[None, :]
        x = tl.load(values + slot[:, None] * value_dim + v[None, :], mask=v_mask, other=0.0)
        if WIDE:
            k, x = k.to(tl.float32), x.to(tl.float32)
        top, total, merged = absorb(q, k, x, real[None, :], top, total, merged, scale)
    part = (line.to(tl.int64) * SPLITS + split) * PACK + g
    tl.store(peak + part, top, mask=g < PACK)
    tl.store(mass + part, total, mask=g < PACK)
    tl.store(sums + part[:, None] * value_dim + v[None, :], merged, mask=packed & (v < value_dim)[None, :])


def merge_parts(peak: torch.Tensor, mass: torch.Tensor, sums: torch.Tensor, output: torch.Tensor) -> None:
    """Merges the parts of every query.

    Args:
        peak (`torch.Tensor` of shape `(lines, splits, queries)`): Largest scores, in powers of two.
        mass (`torch.Tensor` of shape `(lines, splits, queries)`): Sums of the weights below them.
        sums (`torch.Tensor` of shape `(lines, splits, queries, value_dim)`): Weighted sums of values.
        output (`torch.Tensor`): Contiguous, `lines * queries * value_dim` elements in that order; written to.
    """
    lines, splits, pack, value_dim = sums.shape
    block = max(triton.next_power_of_2(value_dim), 16)
    _merge_parts[(lines * pack,)](peak, mass, sums, output, value_dim, pack, splits, block, num_warps=1)


def number_of_splits(lines: int, tokens: int) -> int:
    """Number of parts into which each of `lines` lists of up to `tokens` keys is split, a power of two."""
    wanted = min(PROGRAMS // lines, triton.cdiv(tokens, BLOCK_TOKENS))
    return 1 << (max(wanted, 1).bit_length() - 1)


@torch.library.custom_op("sol_hf::attend_pages", mutates_args=())
def attend_pages(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    chosen: torch.Tensor,
    chosen_count: torch.Tensor,
    first_key: torch.Tensor,
    count: torch.Tensor,
    page_size: int,
    scaling: float,
) -> torch.Tensor:
    """Attention of one token per row over the chosen pages.

    Products are accumulated in float32. Half-precision weights are rounded to the values' dtype before the second
    product, as in every fused attention.

    Args:
        query (`torch.Tensor` of shape `(rows, heads, 1, head_dim)`): Queries of the step's token; the last dimension
            has stride 1.
        keys (`torch.Tensor` of shape `(rows, kv_heads, slots, head_dim)`): Storage of the keys, contiguous.
        values (`torch.Tensor` of shape `(rows, kv_heads, slots, value_dim)`): Storage of the values, contiguous.
        chosen (`torch.Tensor` of shape `(rows, H, pages)`): Pages to read, from `select_largest`. H is the number of
            query heads, or of key-value heads if a group reads the same pages.
        chosen_count (`torch.Tensor` of shape `(rows, H)`): Number of these pages.
        first_key (`torch.Tensor` of shape `(rows,)`): Slot of a row's first real token.
        count (`torch.Tensor` of shape `(rows,)`): Keys of a row.
        page_size (`int`): Keys in a page.
        scaling (`float`): Scale of the scores.

    Returns:
        `torch.Tensor` of shape `(rows, 1, heads, value_dim)`.
    """
    rows, heads, _, dim = query.shape
    kv_heads, slots, value_dim = *keys.shape[1:3], values.shape[-1]
    lines, pages = rows * chosen.shape[1], chosen.shape[2]
    first_key, count = first_key.contiguous(), count.contiguous()
    pack, splits = heads // chosen.shape[1], number_of_splits(lines, pages * page_size)
    peak = torch.empty(lines, splits, pack, dtype=torch.float32, device=query.device)
    mass, sums = torch.empty_like(peak), peak.new_empty(lines, splits, pack, value_dim)
    output = torch.empty(rows, 1, heads, value_dim, dtype=query.dtype, device=query.device)
    # Triton's interpreter has no bfloat16 products; the compiled kernel uses tensor cores.
    wide = query.dtype == torch.float32 or query.device.type == "cpu"
    block_d, block_v = (max(triton.next_power_of_2(size), 16) for size in (dim, value_dim))
    with triton_support.on_device_of(query):
        _attend_pages[(lines, splits)](
            query, keys, values, chosen, chosen_count, first_key, count, peak, mass, sums, scaling * LOG2_E,
            chosen.shape[1], kv_heads, slots, pages, query.stride(0), query.stride(1), dim, value_dim, pack,
            page_size, splits, wide, max(triton.next_power_of_2(pack), 16), BLOCK_TOKENS, block_d, block_v,
        )  # fmt: skip
        merge_parts(peak, mass, sums, output)
    return output


@attend_pages.register_fake
def _(query, keys, values, chosen, chosen_count, first_key, count, page_size, scaling):
    return query.new_empty(query.shape[0], 1, query.shape[1], values.shape[-1])


def attend_pages_reference(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor,
    first_key: torch.Tensor,
    count: torch.Tensor,
    page_size: int,
    scaling: float,
) -> torch.Tensor:
    """The same as [`attend_pages`] in plain torch: dense attention, with a mask of the pages to read.

    Args:
        query (`torch.Tensor` of shape `(rows, heads, 1, head_dim)`): Queries of the step's token.
        keys (`torch.Tensor` of shape `(rows, kv_heads, slots, head_dim)`): Storage of the keys.
        values (`torch.Tensor` of shape `(rows, kv_heads, slots, value_dim)`): Storage of the values.
        mask (`torch.BoolTensor` of shape `(rows, H, pages)`): Pages to read, from `select_largest_reference`.
        first_key (`torch.Tensor` of shape `(rows,)`): Slot of a row's first real token.
        count (`torch.Tensor` of shape `(rows,)`): Keys of a row.
        page_size (`int`): Keys in a page.
        scaling (`float`): Scale of the scores.

    Returns:
        `torch.Tensor` of shape `(rows, 1, heads, value_dim)`.
    """
    heads, kv_heads, slots = query.shape[1], keys.shape[1], keys.shape[2]
    rank = torch.arange(slots, device=keys.device) - first_key[:, None]
    real = (rank >= 0) & (rank < count[:, None])
    page = (rank // page_size).clamp(0, mask.shape[2] - 1)
    seen = mask.gather(2, page[:, None].expand(-1, mask.shape[1], -1)) & real[:, None]
    seen = seen.repeat_interleave(heads // mask.shape[1], dim=1)
    keys, values = (x.masked_fill(~real[:, None, :, None], 0) for x in (keys, values))
    keys, values = (x.repeat_interleave(heads // kv_heads, dim=1) for x in (keys, values))
    output = scaled_dot_product_attention(query, keys, values, attn_mask=seen[:, :, None], scale=scaling)
    return output.transpose(1, 2)
