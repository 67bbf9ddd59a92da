# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Torch's side of the CPU kernel for attention of several new tokens: what it supports, its arguments."""

import ctypes

import torch

from .native_threads import run_in_torch_threads
from .paged_attention import loads


def supports(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> bool:
    """Whether the kernel computes attention of these arguments of [`attend_packed`]."""
    tensors = query, key, value
    return (
        all(x.dtype == torch.float32 and x.device.type == "cpu" for x in tensors)
        and not (torch.is_grad_enabled() and any(x.requires_grad for x in tensors))
        and key.stride(-1) == value.stride(-1) == 1
        and mask.shape[1:] == (1, query.shape[2], key.shape[2])
        and mask.dtype == torch.bool
        and loads("numba_packed_attention")
    )


def attend_packed(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    """Attention of several new tokens over all keys, of arguments that [`supports`] allows.

    Args:
        query (`torch.Tensor` of shape `(rows, heads, tokens, head_dim)`): Queries of the new tokens.
        key (`torch.Tensor` of shape `(rows, kv_heads, slots, head_dim)`): All cached keys.
        value (`torch.Tensor` of shape `(rows, kv_heads, slots, value_dim)`): All cached values.
        mask (`torch.BoolTensor` of shape `(rows or 1, 1, tokens, slots)`): Who sees whom; every token sees a key.
        scaling (`float`, *optional*): Scale of the scores; `1 / sqrt(head_dim)` by default.

    Returns:
        `torch.Tensor` of shape `(rows, tokens, heads, value_dim)`.
    """
    from . import numba_packed_attention as kernel

    rows, heads, tokens, dim = query.shape
    kv_heads, slots, value_dim = key.shape[1], key.shape[2], value.shape[-1]
    mask = mask if mask.stride(-1) == 1 else mask.contiguous()
    lines = heads // kv_heads * tokens
    parts = -(-lines // kernel.COLUMNS)
    packed = query.new_zeros(rows, kv_heads, parts * kernel.COLUMNS, dim)
    packed[:, :, :lines] = query.reshape(rows, kv_heads, lines, dim)
    packed *= dim**-0.5 if scaling is None else scaling
    columns = packed.view(-1, kernel.COLUMNS, dim).transpose(1, 2).contiguous()
    output = query.new_empty(len(columns), value_dim, kernel.COLUMNS)
    scratch = query.new_empty(len(columns) * kernel.SCRATCH_FLOATS)
    arguments = (ctypes.c_int64 * (kernel.NEXT + 1))(
        *(x.data_ptr() for x in (columns, key, value, mask, output, scratch)),
        *(rows, kv_heads, parts, tokens, slots, dim, value_dim),
        *key.stride()[:3],
        *value.stride()[:3],
        mask.stride(0) if len(mask) > 1 else 0,
        mask.stride(2),
        0,
    )
    run_in_torch_threads(kernel.attend_float32.address, ctypes.addressof(arguments))
    answer = output.transpose(1, 2).reshape(rows, kv_heads, parts * kernel.COLUMNS, value_dim)[:, :, :lines]
    return answer.reshape(rows, heads, tokens, value_dim).transpose(1, 2).contiguous()
