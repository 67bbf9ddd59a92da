# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Tokens times weights in nested planes on the CPU: what the compiled kernels support, and how they are called."""

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from ...selection.nested_planes import GROUP, OUTPUTS, WIDTHS, NestedPlanes
from .compilation import DTYPES, loads
from .torch_threads import run_in_torch_threads


MOST_OF_ONE_WIDTH = 8
"""Number of lines that read the same number of bits up to which codes need not be kept for others."""


def supports(x: torch.Tensor, planes: NestedPlanes) -> bool:
    """Whether the kernel can multiply `x` `(..., channels)` with a weight in planes."""
    on_cpu = x.device.type == planes.scales.device.type == "cpu"
    has_gradient = torch.is_grad_enabled() and x.requires_grad
    is_plain = on_cpu and x.dtype in DTYPES and x.numel() > 0 and not has_gradient
    return is_plain and loads("numba_planes") and loads("numba_plane_rows")


def has_dot_products() -> bool:
    """Whether products are made of whole numbers, which beats a decoded weight however many tokens there are."""
    from .numba_plane_integers import HAS_DOT_PRODUCTS

    return HAS_DOT_PRODUCTS


def multiply(
    x: torch.Tensor, planes: NestedPlanes, bits: int | Sequence[int], bias: torch.Tensor | None
) -> torch.Tensor:
    """[`nested_planes.product`] by a compiled kernel, which must support the arguments; equal up to rounding.

    Args:
        x (`torch.Tensor` of shape `(rows, ..., channels)`): Input.
        planes ([`NestedPlanes`]): The weight.
        bits (`int` or one per row): Numbers of bits to read.
        bias (`torch.Tensor` of shape `(outputs,)`, *optional*): Added to the product in float32.

    Returns:
        `torch.Tensor` of shape `(rows, ..., outputs)`, in the dtype of `x`.
    """
    lines = x.reshape(-1, planes.channels)
    order = None if isinstance(bits, int) else Order.of(tuple(bits), len(lines) // len(bits))
    if order is not None:
        lines = lines.index_select(0, order.there)
    lines = lines.float()
    if planes.channels % GROUP:
        lines = functional.pad(lines, (0, -planes.channels % GROUP))
    counts = order.counts if order is not None else tuple(len(lines) * (bits == width) for width in WIDTHS)
    few = len(lines) <= MOST_OF_ONE_WIDTH and len(lines) in counts
    answer = (_multiply_few if few else _multiply_rows)(lines.contiguous(), planes, counts)[:, : planes.outputs]
    answer = answer if bias is None else answer + bias.float()
    if order is not None:
        answer = answer.index_select(0, order.back)
    return answer.to(x.dtype).view(*x.shape[:-1], planes.outputs)


@dataclass(frozen=True)
class Order:
    """Lines in the order of the bits that they read.

    Args:
        there (`torch.LongTensor` of shape `(lines,)`): The lines in this order.
        back (`torch.LongTensor` of shape `(lines,)`): Where each line is in it.
        counts (`tuple[int, ...]`): How many read each of `WIDTHS`.
    """

    there: torch.Tensor
    back: torch.Tensor
    counts: tuple[int, ...]

    @classmethod
    @functools.lru_cache(maxsize=16)  # all layers of a step have the same
    def of(cls, widths: tuple[int, ...], each: int) -> "Order":
        """That of rows that read these numbers of bits, with so many lines each."""
        with torch.inference_mode(False):
            there = torch.tensor(widths).repeat_interleave(each).argsort(stable=True)
            return cls(there, there.argsort(), tuple(each * widths.count(width) for width in WIDTHS))


def _multiply_few(lines: torch.Tensor, planes: NestedPlanes, counts: tuple[int, ...]) -> torch.Tensor:
    """The product with lines `(lines, channels)` that all read the same number of bits."""
    from . import numba_planes as kernel

    tiles, blocks = planes.planes[0].shape[:2]
    answer, scratch = _memory_for(lines, tiles, kernel.SCRATCH_EACH)
    arguments = (ctypes.c_int64 * kernel.HEADER)(
        lines.data_ptr(),
        scratch.data_ptr(),
        planes.scales.data_ptr(),
        *(plane.data_ptr() for plane in planes.planes),
        answer.data_ptr(),
        len(lines),
        blocks,
        tiles,
        0,
    )
    bits = WIDTHS[counts.index(len(lines))]
    run_in_torch_threads(kernel.KERNELS[bits].address, ctypes.addressof(arguments))
    return answer


def _multiply_rows(lines: torch.Tensor, planes: NestedPlanes, counts: tuple[int, ...]) -> torch.Tensor:
    """The product with lines `(lines, channels)` in the order of their bits; so many read each of `WIDTHS`."""
    from . import numba_plane_rows as kernel

    tiles, blocks = planes.planes[0].shape[:2]
    answer, scratch = _memory_for(lines, tiles, kernel.SCRATCH_EACH)
    arguments = (ctypes.c_int64 * kernel.HEADER)(
        lines.data_ptr(),
        scratch.data_ptr(),
        planes.scales.data_ptr(),
        *(plane.data_ptr() for plane in planes.planes),
        answer.data_ptr(),
        blocks,
        tiles,
        *counts,
    )
    for operation in (kernel.prepare_rows, kernel.multiply_rows):
        run_in_torch_threads(operation.address, ctypes.addressof(arguments))
    return answer


def _memory_for(lines: torch.Tensor, tiles: int, each: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Memory for the answer of some lines, and for what a kernel makes of them first."""
    return lines.new_empty(len(lines), tiles * OUTPUTS), lines.new_empty(lines.numel() // GROUP * each)
