# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A linear layer for a few tokens on the CPU: what the compiled kernel supports, and how it is called."""

import ctypes

import torch

from .compilation import loads
from .torch_threads import run_in_torch_threads


MOST_TOKENS = {torch.float32: 32, torch.bfloat16: 8}
"""Largest number of tokens for the kernel. With more, reading the weights no longer dominates the time."""


def supports(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether the kernel can multiply `x` `(..., channels)` with a contiguous weight of the same dtype on the CPU."""
    if x.numel() > MOST_TOKENS.get(weight.dtype, 0) * x.shape[-1] or not loads("numba_linear"):
        return False
    from . import numba_linear as kernel

    return weight.shape[1] % kernel.LANES == 0


def multiply(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`functional.linear` by the compiled kernel, which must support the arguments. Sums are in float32, rounded once.

    Args:
        x (`torch.Tensor` of shape `(..., channels)`): Input.
        weight (`torch.Tensor` of shape `(outputs, channels)`): As in `nn.Linear`.
        bias (`torch.Tensor` of shape `(outputs,)`, *optional*): Added to the product.

    Returns:
        `torch.Tensor` of shape `(..., outputs)`.
    """
    from . import numba_linear as kernel

    dtype, x, bias = x.dtype, x.float().contiguous(), None if bias is None else bias.float().contiguous()
    outputs, channels = weight.shape
    answer = x.new_empty(*x.shape[:-1], outputs)
    arguments = (ctypes.c_int64 * (kernel.NEXT + 1))(
        x.data_ptr(),
        weight.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        answer.data_ptr(),
        x.numel() // channels,
        channels,
        outputs,
        0,
    )
    run = kernel.multiply_float32 if weight.dtype == torch.float32 else kernel.multiply_bfloat16
    run_in_torch_threads(run.address, ctypes.addressof(arguments))
    return answer.to(dtype)
