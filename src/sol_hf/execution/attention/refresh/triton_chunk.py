# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Attention by a Triton kernel, on CUDA. It reads keys and values from the storage of the cache layer."""

import functools
from typing import ClassVar

import torch

from ....cache.paged_layer import PagedLayer
from ...dispatch import Implementation, Prepared
from ...plan import ChunkKernel
from ..stored_keys import is_stored, refuse_capture, rows_on, triton_supports
from .operation import REFRESH_ATTENTION, RefreshAttention


class TritonChunkAttention:
    """Dense attention of the last tokens of every row, those of a KV refresh.

    Args:
        first_key (`torch.LongTensor` of shape `(rows,)`): Slot of every row's first real token.
        count (`torch.LongTensor` of shape `(rows,)`): Keys of every row, the last tokens' included.
    """

    def __init__(self, first_key: torch.Tensor, count: torch.Tensor):
        self.first_key, self.count = first_key, count

    def __call__(self, query: torch.Tensor, layer: PagedLayer, scaling: float | None) -> torch.Tensor:
        """Attention from `query` `(rows, heads, tokens, head_dim)`, of shape `(rows, tokens, heads, value_dim)`."""
        from ....kernels.cuda import chunk_attention as kernel

        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        output = kernel.attend_chunk(query, *layer.stores(), self.first_key, self.count, scaling)
        return output.transpose(1, 2)


class TritonChunk(Implementation[RefreshAttention]):
    """[`TritonChunkAttention`], set up once for all layers on a device."""

    order: ClassVar[int] = 20

    def prepare(self, call: RefreshAttention) -> Prepared | None:
        layer, query = call.layer, call.query
        if isinstance(layer, PagedLayer) and triton_supports(query, layer) and is_stored(layer, call.key, call.value):
            return functools.partial(self._kernel(call, layer), query, layer, call.scaling)
        refuse_capture(call.plan, query)
        return None

    def _kernel(self, call: RefreshAttention, layer: PagedLayer) -> ChunkKernel:
        plan, device = call.plan, call.query.device
        if device not in plan.chunk_kernels:
            rows = plan.rows_on_device or rows_on(device, plan.cache, len(call.query), layer.length)
            plan.chunk_kernels[device] = TritonChunkAttention(rows.first_key, rows.count)
        return plan.chunk_kernels[device]


REFRESH_ATTENTION.register("triton", TritonChunk())
