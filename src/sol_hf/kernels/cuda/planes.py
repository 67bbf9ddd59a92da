# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Triton: a few tokens times weights in nested planes, each token in a number of bits that only the device knows.

A program decodes the weights of some outputs, a group of 64 channels at a time, and multiplies them with all tokens.
It reads the planes that the widest of its tokens needs, and the original weights if one of them is above 8 bits. Each
number of bits that occurs costs one small matrix product. Twice the middle of a cell is a whole number below 256, so
that it is exact in bfloat16 and float16, too: tensor cores multiply them without another rounding, and sums are in
float32. Groups are divided among programs, whose sums a second kernel adds up.
"""

import torch
import triton
import triton.language as tl

from ...selection.nested_planes import GROUP, OUTPUTS
from . import triton_support


PROGRAMS = 1024
BLOCK_OUTPUTS = 64
FEWEST_TOKENS, MOST_TOKENS = 16, 32
"""Tokens of a program, powers of two; in float32 always the fewest, since more of them would spill registers. Further
tokens have programs of their own, which decode the same weights."""


@triton.jit
def _plane(words, n, blocks, group, BITS: tl.constexpr, GROUP: tl.constexpr, OUTPUTS: tl.constexpr, live):
    """The numbers `(64, outputs)` of a plane for a group of channels, see `nested_planes.py`."""
    w, r = tl.arange(0, 2 * BITS), tl.arange(0, GROUP // (2 * BITS))
    place = ((n // OUTPUTS).to(tl.int64) * blocks + 2 * group) * BITS
    inside = live[None, :] & (2 * group + w // BITS < blocks)[:, None]
    loaded = tl.load(words + (place[None, :] + w[:, None]) * OUTPUTS + (n % OUTPUTS)[None, :], mask=inside, other=0)
    shift = 4 * (r % 8) + BITS * (r // 8)
    parts = (loaded[:, None, :] >> shift[None, :, None]) & ((1 << BITS) - 1)
    return tl.reshape(parts, (GROUP, n.shape[0]))


@triton.jit
def _times(x, width, code, BITS: tl.constexpr, EXACT: tl.constexpr):
    """The product of the tokens that read `BITS` bits with twice the middles of their cells."""
    middles = (2 * code + ((1 << (8 - BITS)) - 256)).to(EXACT)
    return tl.dot(tl.where((width == BITS)[:, None], x, 0.0).to(EXACT), middles, input_precision="ieee")


@triton.jit
def _multiply_planes(
    x, bits, first, second, third, last, scales, weight, parts, tokens, channels, outputs, blocks, groups, tiles,
    weight_output, weight_channel, LEAST: tl.constexpr, SPLITS: tl.constexpr, EXACT: tl.constexpr,
    GROUP: tl.constexpr, OUTPUTS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    split = tl.program_id(1)
    n, m = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N), tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    level = tl.load(bits + m, mask=m < tokens, other=0.0)
    width = tl.where(level <= 4, 4, tl.where(level <= 5, 5, tl.where(level <= 6, 6, tl.where(level <= 8, 8, 16))))
    width = tl.where(m < tokens, tl.maximum(width, LEAST), 0)
    most = tl.max(tl.where(width <= 8, width, 0), axis=0)
    stored = n < tiles * OUTPUTS
    share = (groups + SPLITS - 1) // SPLITS
    end = tl.minimum((split + 1) * share, groups)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if most > 0:
        has_four, has_five = tl.sum((width == 4).to(tl.int32)) > 0, tl.sum((width == 5).to(tl.int32)) > 0
        has_six = tl.sum((width == 6).to(tl.int32)) > 0
        for group in range(split * share, end):
            c = group * GROUP + tl.arange(0, GROUP)
            inside = (m < tokens)[:, None] & (c < channels)[None, :]
            value = tl.load(x + m[:, None] * channels + c[None, :], mask=inside, other=0.0)
            place = ((n // OUTPUTS).to(tl.int64) * groups + group) * OUTPUTS + n % OUTPUTS
            scale = tl.load(scales + place, mask=stored, other=0.0).to(tl.float32) * 0.5
            code = _plane(first, n, blocks, group, 4, GROUP, OUTPUTS, stored) << 4
            if has_four:
                total += _times(value, width, code, 4, EXACT) * scale[None, :]
            if most > 4:
                code = code | (_plane(second, n, blocks, group, 1, GROUP, OUTPUTS, stored) << 3)
                if has_five:
                    total += _times(value, width, code, 5, EXACT) * scale[None, :]
            if most > 5:
                code = code | (_plane(third, n, blocks, group, 1, GROUP, OUTPUTS, stored) << 2)
                if has_six:
                    total += _times(value, width, code, 6, EXACT) * scale[None, :]
            if most > 6:
                code = code | _plane(last, n, blocks, group, 2, GROUP, OUTPUTS, stored)
                total += _times(value, width, code, 8, EXACT) * scale[None, :]
    if tl.max(width, axis=0) > 8:
        for group in range(split * share, end):
            c = group * GROUP + tl.arange(0, GROUP)
            inside = (m < tokens)[:, None] & (c < channels)[None, :]
            value = tl.load(x + m[:, None] * channels + c[None, :], mask=inside, other=0.0)
            value = tl.where((width > 8)[:, None], value, 0.0).to(EXACT)
            place = n[None, :].to(tl.int64) * weight_output + c[:, None].to(tl.int64) * weight_channel
            own = tl.load(weight + place, mask=(n < outputs)[None, :] & (c < channels)[:, None], other=0.0)
            total += tl.dot(value, own.to(EXACT), input_precision="ieee")
    place = (split * tokens + m)[:, None].to(tl.int64) * outputs + n[None, :]
    tl.store(parts + place, total, mask=(m < tokens)[:, None] & (n < outputs)[None, :])


@triton.jit
def _add_parts(parts, bias, output, size, outputs, SPLITS: tl.constexpr, BIASED: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < size
    total = tl.zeros((BLOCK,), tl.float32)
    for split in range(SPLITS):
        total += tl.load(parts + split * size + place, mask=inside, other=0.0)
    if BIASED:
        total += tl.load(bias + place % outputs, mask=inside, other=0.0).to(tl.float32)
    tl.store(output + place, total.to(output.dtype.element_ty), mask=inside)


SCHEMA = (
    "(Tensor x, Tensor bits, Tensor[] planes, Tensor scales, Tensor weight, Tensor? bias, int least_bits) -> Tensor"
)
"""Said, since torch before 2.7 does not find it from `list` in annotations."""


@torch.library.custom_op("sol_hf::multiply_planes", mutates_args=(), schema=SCHEMA)
def multiply_planes(
    x: torch.Tensor,
    bits: torch.Tensor,
    planes: list[torch.Tensor],
    scales: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    least_bits: int,
) -> torch.Tensor:
    """The product of tokens with a weight, each in its own number of bits, summed in float32 and rounded once.

    Args:
        x (`torch.Tensor` of shape `(tokens, channels)`): Input, contiguous.
        bits (`torch.Tensor` of shape `(tokens,)`): Levels, in float32; the next of 4, 5, 6 and 8 bits is read, and
            above 8 the original weight.
        planes (list of `torch.Tensor`): Words of the four planes, see [`NestedPlanes`].
        scales (`torch.Tensor` of shape `(tiles, groups, 16)`): Their scales.
        weight (`torch.Tensor` of shape `(outputs, channels)`): The original weight, in the dtype of `x`.
        bias (`torch.Tensor` of shape `(outputs,)`, *optional*): Added to the product.
        least_bits (`int`): Fewest bits that are read.

    Returns:
        `torch.Tensor` of shape `(tokens, outputs)`, in the dtype of `x`.
    """
    (tokens, channels), (tiles, groups, _), outputs = x.shape, scales.shape, weight.shape[0]
    most = FEWEST_TOKENS if x.dtype == torch.float32 else MOST_TOKENS
    block_m = min(max(triton.next_power_of_2(tokens), FEWEST_TOKENS), most)
    blocks, grid = planes[0].shape[1], (triton.cdiv(outputs, BLOCK_OUTPUTS), triton.cdiv(tokens, block_m))
    splits = max(min(PROGRAMS // (grid[0] * grid[1]), groups), 1)
    parts = torch.empty(splits, tokens, outputs, dtype=torch.float32, device=x.device)
    output = torch.empty(tokens, outputs, dtype=x.dtype, device=x.device)
    # Triton's interpreter has no bfloat16 products; the compiled kernel uses tensor cores.
    is_half = x.device.type != "cpu" and x.dtype != torch.float32
    exact = (tl.bfloat16 if x.dtype == torch.bfloat16 else tl.float16) if is_half else tl.float32
    with triton_support.on_device_of(x):
        _multiply_planes[(grid[0], splits, grid[1])](
            x, bits, *planes, scales, weight, parts, tokens, channels, outputs, blocks, groups, tiles,
            *weight.stride(), least_bits, splits, exact, GROUP, OUTPUTS, block_m, BLOCK_OUTPUTS,
        )  # fmt: skip
        size, block = tokens * outputs, 1024
        _add_parts[(triton.cdiv(size, block),)](parts, bias, output, size, outputs, splits, bias is not None, block)
    return output


@multiply_planes.register_fake
def _(x, bits, planes, scales, weight, bias, least_bits):
    return x.new_empty(x.shape[0], weight.shape[0])
