# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A few tokens times weights in nested planes on the CPU: what the compiled kernel supports, and how it is called."""

import ctypes

import torch
from torch.nn import functional

from ...selection.nested_planes import GROUP, OUTPUTS, NestedPlanes
from .compilation import DTYPES, loads
from .torch_threads import run_in_torch_threads


def supports(x: torch.Tensor, planes: NestedPlanes) -> bool:
    """Whether the kernel can multiply `x` `(..., channels)` with a weight in planes."""
    on_cpu = x.device.type == planes.scales.device.type == "cpu"
    has_gradient = torch.is_grad_enabled() and x.requires_grad
    return on_cpu and x.dtype in DTYPES and x.numel() > 0 and not has_gradient and loads("numba_planes")


def multiply(x: torch.Tensor, planes: NestedPlanes, bits: int, bias: torch.Tensor | None) -> torch.Tensor:
    """[`nested_planes.product`] by the compiled kernel, which must support the arguments; equal up to rounding.

    Args:
        x (`torch.Tensor` of shape `(..., channels)`): Input.
        planes ([`NestedPlanes`]): The weight.
        bits (`int`): Number of bits to read.
        bias (`torch.Tensor` of shape `(outputs,)`, *optional*): Added to the product in float32.

    Returns:
        `torch.Tensor` of shape `(..., outputs)`, in the dtype of `x`.
    """
    from . import numba_planes as kernel

    lines = x.float().reshape(-1, planes.channels)
    if planes.channels % GROUP:
        lines = functional.pad(lines, (0, -planes.channels % GROUP))
    lines = lines.contiguous()
    tiles, blocks = planes.planes[0].shape[:2]
    answer = lines.new_empty(len(lines), tiles * OUTPUTS)
    scratch = lines.new_empty(lines.numel() // GROUP * kernel.SCRATCH_EACH)
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
    run_in_torch_threads(kernel.KERNELS[bits].address, ctypes.addressof(arguments))
    answer = answer[:, : planes.outputs]
    answer = answer if bias is None else answer + bias.float()
    return answer.to(x.dtype).view(*x.shape[:-1], planes.outputs)
