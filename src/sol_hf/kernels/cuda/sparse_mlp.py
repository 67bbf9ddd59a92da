# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Triton: the first half of an MLP over the kept input channels only, and its last projection over kept neurons.

The time of a matrix-vector product is the time to read the weights. With weights stored input-major,
`(channels, width)`, those of a channel are contiguous, and only those of kept channels are read. The list of kept
channels and its length stay on the device. The channels are divided among several programs; a second kernel adds up
the parts and applies `activation(gate) * up`.

Every row reads the weights of its own channels, so this is faster for a few rows only.
"""

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch.nn import functional

from . import triton_support
from .select_pages import select_largest


PROGRAMS = 1024
BLOCK_WIDTH = 128
BLOCK_CHANNELS = 16
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
}
"""Activations that the kernel can apply, in plain torch."""
NO_ACTIVATION = "none"


@triton.jit
def _multiply_kept(
    x, chosen, chosen_count, gate, up, parts, channels, width, SPLITS: tl.constexpr, GATED: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    row, split = tl.program_id(0), tl.program_id(2)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    number = tl.load(chosen_count + row)
    share = (number + SPLITS - 1) // SPLITS
    end = tl.minimum((split + 1) * share, number)
    # The sum over the channels of a block is computed at the end: until then threads need not synchronize.
    gate_sums = tl.zeros((BLOCK_C, BLOCK_N), tl.float32)
    up_sums = tl.zeros((BLOCK_C, BLOCK_N), tl.float32)
    for begin in range(split * share, end, BLOCK_C):
        place = begin + tl.arange(0, BLOCK_C)
        kept = tl.load(chosen + row * channels + place, mask=place < end, other=0)
        value = tl.load(x + row * channels + kept, mask=place < end, other=0.0).to(tl.float32)[:, None]
        line = kept.to(tl.int64)[:, None] * width + n[None, :]
        inside = (place < end)[:, None] & (n < width)[None, :]
        gate_sums += value * tl.load(gate + line, mask=inside, other=0.0).to(tl.float32)
        if GATED:
            up_sums += value * tl.load(up + line, mask=inside, other=0.0).to(tl.float32)
    part = parts + (row * SPLITS + split).to(tl.int64) * 2 * width + n
    tl.store(part, tl.sum(gate_sums, axis=0), mask=n < width)
    if GATED:
        tl.store(part + width, tl.sum(up_sums, axis=0), mask=n < width)


@triton.jit
def _activate(x, ACTIVATION: tl.constexpr):
    if ACTIVATION == "silu":
        return x * tl.sigmoid(x)
    elif ACTIVATION == "gelu":
        return x * 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        # tanh(y) = 2 sigmoid(2y) - 1
        return x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    elif ACTIVATION == "relu":
        return tl.maximum(x, 0.0)
    else:
        return x


@triton.jit
def _merge_and_activate(
    parts, gate_bias, up_bias, output, width, SPLITS: tl.constexpr, GATED: tl.constexpr, BIASED: tl.constexpr,
    ACTIVATION: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    gate_sum = tl.zeros((BLOCK_N,), tl.float32)
    up_sum = tl.zeros((BLOCK_N,), tl.float32)
    for split in range(SPLITS):
        part = parts + (row * SPLITS + split).to(tl.int64) * 2 * width + n
        gate_sum += tl.load(part, mask=n < width, other=0.0)
        if GATED:
            up_sum += tl.load(part + width, mask=n < width, other=0.0)
    if BIASED:
        gate_sum += tl.load(gate_bias + n, mask=n < width, other=0.0).to(tl.float32)
        if GATED:
            up_sum += tl.load(up_bias + n, mask=n < width, other=0.0).to(tl.float32)
    result = _activate(gate_sum, ACTIVATION)
    if GATED:
        result *= up_sum
    tl.store(output + row.to(tl.int64) * width + n, result.to(output.dtype.element_ty), mask=n < width)


@torch.library.custom_op("sol_hf::multiply_kept_channels", mutates_args=())
def multiply_kept_channels(
    x: torch.Tensor,
    chosen: torch.Tensor,
    chosen_count: torch.Tensor,
    gate: torch.Tensor,
    up: torch.Tensor | None,
    gate_bias: torch.Tensor | None,
    up_bias: torch.Tensor | None,
    activation: str,
) -> torch.Tensor:
    """`activation(gate(x)) * up(x)` over chosen input channels, summed in float32 and rounded once.

    Args:
        x (`torch.Tensor` of shape `(rows, channels)`): Input of the MLP, contiguous.
        chosen (`torch.Tensor` of shape `(rows, channels)`): Channels to read, int32, contiguous.
        chosen_count (`torch.Tensor` of shape `(rows,)`): Number of these channels.
        gate (`torch.Tensor` of shape `(channels, width)`): Input-major weight, contiguous.
        up (`torch.Tensor` of shape `(channels, width)`, *optional*): As `gate`; without it the result is
            `activation(gate(x))`.
        gate_bias (`torch.Tensor` of shape `(width,)`, *optional*): Bias of `gate`.
        up_bias (`torch.Tensor` of shape `(width,)`, *optional*): Bias of `up`; needed if `gate_bias` is given.
        activation (`str`): One of `ACTIVATIONS`, or `NO_ACTIVATION`.

    Returns:
        `torch.Tensor` of shape `(rows, width)`.
    """
    rows, channels = x.shape
    width, blocks = gate.shape[1], triton.cdiv(gate.shape[1], BLOCK_WIDTH)
    splits = max(min(PROGRAMS // (rows * blocks), triton.cdiv(channels, BLOCK_CHANNELS)), 1)
    parts = torch.empty(rows, splits, 2, width, dtype=torch.float32, device=x.device)
    output = torch.empty(rows, width, dtype=x.dtype, device=x.device)
    gated, biased = up is not None, gate_bias is not None
    with triton_support.on_device_of(x):
        _multiply_kept[(rows, blocks, splits)](
            x, chosen, chosen_count, gate, up, parts, channels, width, splits, gated, BLOCK_CHANNELS, BLOCK_WIDTH
        )
        _merge_and_activate[(rows, blocks)](
            parts, gate_bias, up_bias, output, width, splits, gated, biased, activation, BLOCK_WIDTH
        )
    return output


@multiply_kept_channels.register_fake
def _(x, chosen, chosen_count, gate, up, gate_bias, up_bias, activation):
    return x.new_empty(x.shape[0], gate.shape[1])


def sparse_gate_up(
    x: torch.Tensor,
    fraction: torch.Tensor,
    gate: torch.Tensor,
    up: torch.Tensor | None,
    gate_bias: torch.Tensor | None = None,
    up_bias: torch.Tensor | None = None,
    activation: str = "silu",
) -> torch.Tensor:
    """`activation(gate(x)) * up(x)` over the largest channels of `x`, with the others set to zero.

    Args:
        x (`torch.Tensor` of shape `(rows, channels)`): Input of the MLP.
        fraction (`torch.Tensor` of shape `(rows,)`): Fraction of the channels to keep.
        gate (`torch.Tensor` of shape `(channels, width)`): Input-major weight, contiguous.
        up (`torch.Tensor` of shape `(channels, width)`, *optional*): As `gate`; `None` for an MLP without gate.
        gate_bias (`torch.Tensor` of shape `(width,)`, *optional*): Bias of `gate`.
        up_bias (`torch.Tensor` of shape `(width,)`, *optional*): Bias of `up`.
        activation (`str`, *optional*, defaults to `"silu"`): One of `ACTIVATIONS`.

    Returns:
        `torch.Tensor` of shape `(rows, width)`.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"`activation` must be one of {', '.join(ACTIVATIONS)}, got {activation!r}.")
    x = x.contiguous()
    chosen, number = _choose(x, fraction)
    return multiply_kept_channels(x, chosen, number, gate, up, gate_bias, up_bias, activation)


def sparse_projection(
    x: torch.Tensor, fraction: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """The product with a weight over the largest channels of `x`, with the others set to zero.

    Args:
        x (`torch.Tensor` of shape `(rows, channels)`): Input.
        fraction (`torch.Tensor` of shape `(rows,)`): Fraction of the channels to keep.
        weight (`torch.Tensor` of shape `(channels, outputs)`): Input-major weight, contiguous.
        bias (`torch.Tensor` of shape `(outputs,)`, *optional*): Added to the product.

    Returns:
        `torch.Tensor` of shape `(rows, outputs)`.
    """
    x = x.contiguous()
    chosen, number = _choose(x, fraction)
    return multiply_kept_channels(x, chosen, number, weight, None, bias, None, NO_ACTIVATION)


def _choose(x: torch.Tensor, fraction: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest channels `(rows, channels)`, and their number `(rows,)`."""
    count = torch.full((len(x),), x.shape[1], dtype=torch.int32, device=x.device)
    chosen, number = select_largest(x[:, None], fraction, count, 1, True)
    return chosen[:, 0], number[:, 0]


def gate_up_reference(
    x: torch.Tensor,
    gate: torch.Tensor,
    up: torch.Tensor | None,
    gate_bias: torch.Tensor | None,
    up_bias: torch.Tensor | None,
    activation: str,
) -> torch.Tensor:
    """The same as [`sparse_gate_up`] in plain torch and the dtype of `x`, for an `x` whose other channels are zero."""
    gated = ACTIVATIONS[activation](functional.linear(x, gate.T, gate_bias))
    return gated if up is None else gated * functional.linear(x, up.T, up_bias)
