# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Triton: scores of all tokens by their codes.

One kernel multiplies the queries of a key-value head's group with the codes of a block of tokens. If the group chooses
together, a second one turns these products into probabilities, and adds them up over the group: the first leaves the
largest score and the sum of weights of every block, from which those of all tokens follow.
"""

import torch
import triton
import triton.language as tl

from . import triton_support
from .sketch_index import layout_of


BLOCK_TOKENS = 128


@triton.jit
def _add_part(
    total, query, packed, place, live, begin, head_stride, dim: tl.constexpr, GROUP: tl.constexpr,
    WIDTH: tl.constexpr, LEFT: tl.constexpr, MINUS: tl.constexpr, BYTES: tl.constexpr, BLOCK_G: tl.constexpr,
    BLOCK_C: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Add the products of queries with one part of the codes of some tokens."""
    g, i = tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_C)
    byte = tl.load(packed + place[None, :] + i[:, None], mask=(i < BYTES)[:, None] & live[None, :], other=0)
    byte = byte.to(tl.int32)
    for field in tl.static_range(8 // WIDTH):
        channel = field * BYTES + i
        inside = (i < BYTES) & (channel < dim)
        from_query = query + begin + g[:, None] * head_stride + channel[None, :]
        q = tl.load(from_query, mask=(g < GROUP)[:, None] & inside[None, :], other=0.0)
        code = (((byte >> (field * WIDTH)) & ((1 << WIDTH) - 1)) << LEFT) - MINUS
        total += tl.dot(q.to(EXACT), code.to(EXACT), input_precision="ieee")
    return total


@triton.jit
def _score_tokens(
    query, packed, scales, first, count, wanted, scores, peak, mass, scaling, kv_heads, slots, capacity, blocks, sink,
    recent, query_row, query_head, dim: tl.constexpr, GROUP: tl.constexpr, SHARED: tl.constexpr, TOP: tl.constexpr,
    WIDTH: tl.constexpr, REST: tl.constexpr, BYTES: tl.constexpr, REST_BYTES: tl.constexpr, EXACT: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    line, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row, head = tl.program_id(0) // kv_heads, tl.program_id(0) % kv_heads
    held = tl.load(count + row).to(tl.int32)
    if (tl.load(wanted + row) < held) & (block * BLOCK_T < held):
        t, g = block * BLOCK_T + tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_G)
        live = t < held
        place = line * capacity + tl.load(first + row) + t
        byte_place = place * (BYTES + REST_BYTES)
        begin = row.to(tl.int64) * query_row + head * GROUP * query_head
        total = tl.zeros((BLOCK_G, BLOCK_T), tl.float32)
        total = _add_part(
            total, query, packed, byte_place, live, begin, query_head, dim, GROUP, WIDTH, REST, TOP, BYTES, BLOCK_G,
            BLOCK_C, EXACT,
        )  # fmt: skip
        if REST > 0:
            total = _add_part(
                total, query, packed, byte_place + BYTES, live, begin, query_head, dim, GROUP, REST, 0, 0, REST_BYTES,
                BLOCK_G, BLOCK_R, EXACT,
            )  # fmt: skip
        score = total * tl.load(scales + place, mask=live, other=0.0).to(tl.float32)[None, :]
        mine = (g < GROUP)[:, None] & live[None, :]
        if SHARED:
            score = tl.where(mine, score * scaling, float("-inf"))
            top = tl.max(score, axis=1)
            part = (line * GROUP + g) * blocks + block
            tl.store(peak + part, top, mask=g < GROUP)
            weight = tl.exp(score - tl.where(g < GROUP, top, 0.0)[:, None])
            tl.store(mass + part, tl.sum(weight, axis=1), mask=g < GROUP)
        else:
            always = (t < sink) | (t >= held - recent)
            score = tl.where(always[None, :], float("inf"), score)
        tl.store(scores + (line * GROUP + g)[:, None] * slots + t[None, :], score, mask=mine)


@triton.jit
def _add_probabilities(
    logits, peak, mass, count, wanted, scores, kv_heads, slots, blocks, sink, recent, GROUP: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    line, block, row = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(0) // kv_heads
    held = tl.load(count + row).to(tl.int32)
    if (tl.load(wanted + row) < held) & (block * BLOCK_T < held):
        t, b = block * BLOCK_T + tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_B)
        total = tl.zeros((BLOCK_T,), tl.float32)
        for g in range(GROUP):
            part = (line * GROUP + g) * blocks + b
            some = b * BLOCK_T < held
            tops = tl.load(peak + part, mask=some, other=float("-inf"))
            top = tl.max(tops, axis=0)
            whole = tl.sum(tl.exp(tops - top) * tl.load(mass + part, mask=some, other=0.0), axis=0)
            logit = tl.load(logits + (line * GROUP + g) * slots + t, mask=t < held, other=float("-inf"))
            total += tl.exp(logit - top) / whole
        total = tl.where((t < sink) | (t >= held - recent), float("inf"), total)
        tl.store(scores + line * slots + t, total, mask=t < held)


SCHEMA = (
    "(Tensor query, Tensor packed, Tensor scale, Tensor first_key, Tensor count, Tensor wanted, int bits, "
    "int[] always, float scaling, bool shared) -> Tensor"
)
"""Said, since torch before 2.7 does not find it from `list` in annotations."""


@torch.library.custom_op("sol_hf::score_tokens", mutates_args=(), schema=SCHEMA)
def score_tokens(
    query: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    first_key: torch.Tensor,
    count: torch.Tensor,
    wanted: torch.Tensor,
    bits: int,
    always: list[int],
    scaling: float,
    shared: bool,
) -> torch.Tensor:
    """Scores of all tokens, infinite for those that are always read.

    Args:
        query (`torch.Tensor` of shape `(rows, heads, 1, head_dim)`): Queries of the step's token; the last dimension
            has stride 1.
        packed (`torch.Tensor` of shape `(rows, kv_heads, capacity, bytes)`): Packed codes, contiguous.
        scale (`torch.Tensor` of shape `(rows, kv_heads, capacity)`): Their scales, contiguous.
        first_key (`torch.Tensor` of shape `(rows,)`): Slot of a row's first real token.
        count (`torch.Tensor` of shape `(rows,)`): Keys of a row.
        wanted (`torch.Tensor` of shape `(rows,)`): Tokens that a list chooses; a row that reads all is not scored.
        bits (`int`): Bits of a code.
        always (list of two `int`): The first and the last tokens that are always read.
        scaling (`float`): Scale of the scores.
        shared (`bool`): Whether the query heads of a key-value head choose together, by their probabilities.

    Returns:
        `torch.Tensor` of shape `(rows, H, capacity)`, in float32, by rank after the row's first token; uninitialized
        from `count` on. H is `kv_heads` if `shared`, else `heads`.
    """
    (rows, heads, _, dim), (kv_heads, capacity) = query.shape, packed.shape[1:3]
    group, blocks = heads // kv_heads, triton.cdiv(capacity, BLOCK_TOKENS)
    width, rest, size, rest_size = layout_of(bits, dim)
    logits = torch.empty(rows, heads, capacity, dtype=torch.float32, device=query.device)
    peak = logits.new_empty(rows, heads, blocks if shared else 0)
    mass = torch.empty_like(peak)
    first_key, count, wanted = first_key.contiguous(), count.contiguous(), wanted.contiguous()
    # Triton's interpreter has no bfloat16 products; codes are exact in all dtypes.
    is_half = query.device.type != "cpu" and query.dtype != torch.float32
    exact = (tl.bfloat16 if query.dtype == torch.bfloat16 else tl.float16) if is_half else tl.float32
    block_g, block_c, block_r = (max(triton.next_power_of_2(n), 16) for n in (group, size, max(rest_size, 1)))
    with triton_support.on_device_of(query):
        _score_tokens[(rows * kv_heads, blocks)](
            query, packed, scale, first_key, count, wanted, logits, peak, mass, scaling, kv_heads, capacity, capacity,
            blocks, *always, query.stride(0), query.stride(1), dim, group, shared, 2 ** (bits - 1) - 1, width, rest,
            size, rest_size, exact, block_g, BLOCK_TOKENS, block_c, block_r,
        )  # fmt: skip
        if not shared:
            return logits
        scores = logits.new_empty(rows, kv_heads, capacity)
        _add_probabilities[(rows * kv_heads, blocks)](
            logits, peak, mass, count, wanted, scores, kv_heads, capacity, blocks, *always, group, BLOCK_TOKENS,
            triton.next_power_of_2(blocks),
        )  # fmt: skip
    return scores


@score_tokens.register_fake
def _(query, packed, scale, first_key, count, wanted, bits, always, scaling, shared):
    heads = packed.shape[1] if shared else query.shape[1]
    return query.new_empty(query.shape[0], heads, packed.shape[2], dtype=torch.float32)
