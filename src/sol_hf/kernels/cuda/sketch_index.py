# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Triton: the index of keys in a few bits on a GPU: new keys are encoded.

`first_key` `(rows,)` is the slot of a row's first real token, and `count` `(rows,)` the number of its keys. Both are
on the device. Codes are those of `selection/sketch.py`, to the bit. A byte has several channels, `bytes` apart; a code
of 3 bits is in two parts.

Codes are relative to a mean over the first tokens, as many as the largest power of two allows, 64 at most. A token
that raises this number changes all codes of its row: they are fewer than 64, and are computed again then.
"""

import torch
import triton
import triton.language as tl

from ...selection.sketch import INDEX_BITS, MOST_IN_MEAN, SMALLEST_SCALE, bytes_per_key
from . import triton_support


BLOCK_ENCODED = 16
ROUND_TO_INTEGER = 12582912.0
"""1.5 * 2^23: float32 numbers near it are whole, so that adding it rounds to the nearest even number."""


@triton.jit
def _tokens_in_mean(count, POWERS: tl.constexpr):
    number = tl.minimum(count * 0 + 1, 1)
    for power in tl.static_range(1, POWERS):
        number = tl.where(count >= (1 << power), 1 << power, number)
    return number


@triton.jit
def _mean_of(keys, mean, begin, line, channel, anew, number, dim: tl.constexpr, MOST: tl.constexpr):
    """The mean of some channels: from the first keys, in float64, or the stored one."""
    inside = channel < dim
    if anew:
        t = tl.arange(0, MOST)
        place = (begin + t)[:, None] * dim + channel[None, :]
        x = tl.load(keys + place, mask=(t < number)[:, None] & inside[None, :], other=0.0)
        middle = (tl.sum(x.to(tl.float64), axis=0) / number).to(tl.float32)
    else:
        middle = tl.load(mean + line * dim + channel, mask=inside, other=0.0)
    return middle


@triton.jit
def _to_dtype(x, LIKE: tl.constexpr):
    """Float32 numbers as they are after rounding to a dtype, ties to even."""
    if LIKE == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).to(tl.float32, bitcast=True)
    else:
        return x.to(LIKE).to(tl.float32)


@triton.jit
def _pack_part(
    keys, mean, packed, begin, line, slot, live, anew, number, scale, code_place, dim: tl.constexpr,
    MOST: tl.constexpr, TOP: tl.constexpr, WIDTH: tl.constexpr, LEFT: tl.constexpr, BYTES: tl.constexpr,
    BLOCK_C: tl.constexpr, ROUND: tl.constexpr,
):  # fmt: skip
    """Write one part of the codes of some tokens: bits `LEFT` to `LEFT + WIDTH - 1` of every code."""
    i = tl.arange(0, BLOCK_C)
    byte = tl.zeros((live.shape[0], BLOCK_C), tl.int32)
    for field in tl.static_range(8 // WIDTH):
        channel = field * BYTES + i
        inside = live[:, None] & ((i < BYTES) & (channel < dim))[None, :]
        x = tl.load(keys + slot[:, None] * dim + channel[None, :], mask=inside, other=0.0).to(tl.float32)
        x = x - _mean_of(keys, mean, begin, line, channel, anew, number, dim, MOST)[None, :]
        ratio = tl.div_rn(tl.where(inside, x, 0.0), tl.broadcast_to(scale[:, None], x.shape))
        code = tl.minimum(tl.maximum((ratio + ROUND) - ROUND, -TOP), TOP).to(tl.int32) + TOP
        part = (code >> LEFT) & ((1 << WIDTH) - 1)
        byte = byte | (tl.where(inside, part, 0) << (field * WIDTH))
    tl.store(packed + code_place[:, None] + i[None, :], byte.to(tl.uint8), mask=live[:, None] & (i < BYTES)[None, :])


@triton.jit
def _encode_tokens(
    keys, first, count, mean, packed, scales, tokens, kv_heads, slots, capacity, step, smallest, dim: tl.constexpr,
    TOP: tl.constexpr, WIDTH: tl.constexpr, REST: tl.constexpr, BYTES: tl.constexpr,
    REST_BYTES: tl.constexpr, POWERS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr, ROUND: tl.constexpr,
):  # fmt: skip
    line, row = tl.program_id(0).to(tl.int64), tl.program_id(0) // kv_heads
    held = tl.load(count + row).to(tl.int32)
    before = held - tokens
    number = _tokens_in_mean(held, POWERS)
    anew = (before < 1) | (number != _tokens_in_mean(before, POWERS))
    token = tl.where(anew, 0, before) + tl.program_id(1) * BLOCK_T
    if token < held:
        MOST: tl.constexpr = 1 << (POWERS - 1)
        begin_slot = tl.load(first + row)
        begin, t = line * slots + begin_slot, token + tl.arange(0, BLOCK_T)
        live, slot, i = t < held, begin + t, tl.arange(0, BLOCK_C)
        highest = tl.zeros((BLOCK_T,), tl.float32)
        for field in tl.static_range(8 // WIDTH):
            channel = field * BYTES + i
            middle = _mean_of(keys, mean, begin, line, channel, anew, number, dim, MOST)
            mine = (i < BYTES) & (channel < dim)
            if anew & (tl.program_id(1) == 0):
                tl.store(mean + line * dim + channel, middle, mask=mine)
            inside = live[:, None] & mine[None, :]
            x = tl.load(keys + slot[:, None] * dim + channel[None, :], mask=inside, other=0.0).to(tl.float32)
            highest = tl.maximum(highest, tl.max(tl.where(inside, tl.abs(x - middle[None, :]), 0.0), axis=1))
        scale = _to_dtype(tl.maximum(highest * step, smallest), scales.dtype.element_ty)
        place = line * capacity + begin_slot + t
        tl.store(scales + place, scale.to(scales.dtype.element_ty), mask=live)
        code_place = place * (BYTES + REST_BYTES)
        _pack_part(
            keys, mean, packed, begin, line, slot, live, anew, number, scale, code_place, dim, MOST, TOP, WIDTH,
            REST, BYTES, BLOCK_C, ROUND,
        )  # fmt: skip
        if REST > 0:
            _pack_part(
                keys, mean, packed, begin, line, slot, live, anew, number, scale, code_place + BYTES, dim, MOST, TOP,
                REST, 0, REST_BYTES, BLOCK_R, ROUND,
            )  # fmt: skip


def layout_of(bits: int, dim: int) -> tuple[int, int, int, int]:
    """Widths of the two parts of a code, the second 0 if there is one, and bytes of each part."""
    width, rest = (*INDEX_BITS[bits], 0)[:2]
    size = -(-dim * width // 8)
    return width, rest, size, bytes_per_key(dim, bits) - size


@torch.library.custom_op("sol_hf::encode_tokens", mutates_args=("mean", "packed", "scale"))
def encode_tokens(
    keys: torch.Tensor,
    mean: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    first_key: torch.Tensor,
    count: torch.Tensor,
    tokens: int,
    bits: int,
) -> None:
    """Encode the last tokens of every row, in place; all tokens of a row whose mean they change.

    Args:
        keys (`torch.Tensor` of shape `(rows, kv_heads, slots, head_dim)`): Storage of the keys, contiguous.
        mean (`torch.Tensor` of shape `(rows, kv_heads, 1, head_dim)`): Means of the keys, float32, contiguous.
        packed (`torch.Tensor` of shape `(rows, kv_heads, capacity, bytes)`): Packed codes, contiguous.
        scale (`torch.Tensor` of shape `(rows, kv_heads, capacity)`): Scales, in the dtype of the keys, contiguous.
        first_key (`torch.Tensor` of shape `(rows,)`): Slot of the row's first real token.
        count (`torch.Tensor` of shape `(rows,)`): Keys of the row. Those before the last `tokens` have codes already.
        tokens (`int`): Number of tokens without codes, at most 64.
        bits (`int`): Bits of a code.
    """
    rows, kv_heads, slots, dim = keys.shape
    width, rest, size, rest_size = layout_of(bits, dim)
    smallest = max(SMALLEST_SCALE, torch.finfo(scale.dtype).smallest_normal)
    blocks = triton.cdiv(MOST_IN_MEAN - 1 + tokens, BLOCK_ENCODED)
    top = 2 ** (bits - 1) - 1
    with triton_support.on_device_of(keys):
        _encode_tokens[(rows * kv_heads, blocks)](
            keys, first_key.contiguous(), count.contiguous(), mean, packed, scale, tokens, kv_heads, slots,
            packed.shape[2], 1 / top, smallest, dim, top, width, rest, size, rest_size, MOST_IN_MEAN.bit_length(),
            BLOCK_ENCODED, triton.next_power_of_2(size), triton.next_power_of_2(max(rest_size, 1)), ROUND_TO_INTEGER,
        )  # fmt: skip


@encode_tokens.register_fake
def _(keys, mean, packed, scale, first_key, count, tokens, bits):
    return None
