# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Attention of several new tokens on the CPU: what the compiled kernel supports, and how it is called."""

import ctypes

import torch

from .compilation import loads
from .torch_threads import run_in_torch_threads


TASKS_EACH = 8
"""Tasks per thread above which the keys are not split. An uneven division of tasks then costs little."""
LEAST_BLOCKS = 4
"""Minimum number of blocks of keys in a part, since merging parts takes time."""
LEAST_FILLED = 0.8
"""Share of the columns that must be in use for the kernel to be faster than torch."""


def supports(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> bool:
    """Whether the kernel supports these arguments of [`attend_chunk`]."""
    tensors = query, key, value
    return (
        query.dtype in (torch.float32, torch.bfloat16)
        and all(x.dtype == query.dtype and x.device.type == "cpu" for x in tensors)
        and not (torch.is_grad_enabled() and any(x.requires_grad for x in tensors))
        and key.stride(-1) == value.stride(-1) == 1
        and mask.shape[1:] == (1, query.shape[2], key.shape[2])
        and mask.dtype == torch.bool
        and loads("numba_chunk_attention")
    )


def fills_columns(query: torch.Tensor, key: torch.Tensor) -> bool:
    """Whether queries `(rows, heads, tokens, head_dim)` fill most of the columns that the kernel computes with.

    The queries of a group of heads that share keys are padded to a multiple of `COLUMNS`.
    """
    if not loads("numba_chunk_attention"):
        return False
    from .numba_tiles import COLUMNS

    lines = query.shape[1] // key.shape[1] * query.shape[2]
    return lines >= LEAST_FILLED * -(-lines // COLUMNS) * COLUMNS


def attend_chunk(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    """Attention of several new tokens over all keys, computed in float32, for arguments that [`supports`] accepts.

    Args:
        query (`torch.Tensor` of shape `(rows, heads, tokens, head_dim)`): Queries of the new tokens.
        key (`torch.Tensor` of shape `(rows, kv_heads, slots, head_dim)`): All cached keys.
        value (`torch.Tensor` of shape `(rows, kv_heads, slots, value_dim)`): All cached values.
        mask (`torch.BoolTensor` of shape `(rows or 1, 1, tokens, slots)`): Which keys a token sees, at least one.
        scaling (`float`, *optional*): Scale of the scores; `1 / sqrt(head_dim)` by default.

    Returns:
        `torch.Tensor` of shape `(rows, tokens, heads, value_dim)`, in the dtype of the query.
    """
    from . import numba_chunk_attention as kernel
    from .numba_tiles import COLUMNS

    rows, heads, tokens, dim = query.shape
    kv_heads, slots, value_dim = key.shape[1], key.shape[2], value.shape[-1]
    mask = mask if mask.stride(-1) == 1 else mask.contiguous()
    lines = heads // kv_heads * tokens
    parts = -(-lines // COLUMNS)
    splits, is_half = number_of_splits(rows * kv_heads * parts, -(-slots // kernel.BLOCK)), key.dtype != torch.float32
    padded = query.new_zeros(rows, kv_heads, parts * COLUMNS, dim, dtype=torch.float32)
    padded[:, :, :lines] = query.reshape(rows, kv_heads, lines, dim)
    padded *= dim**-0.5 if scaling is None else scaling
    columns = padded.view(-1, COLUMNS, dim).transpose(1, 2).contiguous()
    output = columns.new_empty(len(columns), splits, value_dim, COLUMNS)
    scratch_each = kernel.SCRATCH_FLOATS * COLUMNS + (kernel.BLOCK * (dim + value_dim) if is_half else 0)
    scratch = columns.new_empty(len(columns), splits, scratch_each)
    arguments = (ctypes.c_int64 * (kernel.NEXT + 1))(
        *(x.data_ptr() for x in (columns, key, value, mask, output, scratch)),
        *(rows, kv_heads, parts, tokens, slots, dim, value_dim),
        *key.stride()[:3],
        *value.stride()[:3],
        mask.stride(0) if len(mask) > 1 else 0,
        mask.stride(2),
        *(splits, is_half, scratch_each, COLUMNS, 0, 0),
    )
    run_in_torch_threads(kernel.attend.address, ctypes.addressof(arguments))
    if splits > 1:
        peaks, masses = scratch[..., kernel.STATE * COLUMNS :][..., : 2 * COLUMNS].chunk(2, dim=-1)
        shares = torch.exp(peaks - peaks.amax(dim=1, keepdim=True))
        merged = (output * shares[:, :, None]).sum(dim=1) / (masses * shares).sum(dim=1)[:, None]
    else:
        merged = output[:, 0]
    answer = merged.transpose(1, 2).reshape(rows, kv_heads, parts * COLUMNS, value_dim)[:, :, :lines]
    return answer.reshape(rows, heads, tokens, value_dim).transpose(1, 2).to(query.dtype).contiguous()


def number_of_splits(tasks: int, blocks: int) -> int:
    """Number of parts into which the keys are split, so that all threads are busy until the end."""
    threads = torch.get_num_threads()
    if tasks % threads == 0 or tasks >= TASKS_EACH * threads:
        return 1
    return max(min(-(-TASKS_EACH * threads // tasks), blocks // LEAST_BLOCKS), 1)
