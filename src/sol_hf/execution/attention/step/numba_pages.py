# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Attention by a kernel that numba compiles, on the CPU.

It reads the selected pages in the storage of the cache layer.
"""

import functools
from types import ModuleType
from typing import ClassVar

import numpy as np
import torch

from ....cache.paged_layer import PagedLayer
from ....cache.stored_layer import StoredLayer
from ....kernels.cpu.compilation import DTYPES, loads
from ....kernels.cpu.program import bits_of
from ....kernels.cpu.torch_threads import run_in_torch_threads
from ....selection.pages import pages_to_read
from ....selection.rule import SelectionRule
from ...dispatch import Implementation, Prepared
from ...plan import AttentionKernel
from .operation import STEP_ATTENTION, StepAttention


MOST_HEADS_IN_GROUP = 32
TASKS_PER_THREAD = 4


class NumbaPages(Implementation[StepAttention]):
    """[`PagedAttention`], set up once per step for all layers of one shape."""

    order: ClassVar[int] = 30

    def prepare(self, call: StepAttention) -> Prepared | None:
        layer = call.layer
        if not (isinstance(layer, PagedLayer) and supports(call.query, layer) and call.reads_pages and call.is_stored):
            return None
        return functools.partial(self._kernel(call, layer), call.query, layer)

    def suits(self, call: StepAttention) -> bool:
        return call.is_long

    def _kernel(self, call: StepAttention, layer: PagedLayer) -> AttentionKernel:
        plan, query, scores = call.plan, call.query, (call.scaling, call.changes.soft_cap)
        kernels = plan.shared.kernels.setdefault("numba", [])
        for kernel in kernels:
            if kernel.fits(query, layer, *scores):
                return kernel
        padding = plan.cache.padding
        first_key = torch.zeros(len(query), dtype=torch.long) if padding is None else padding
        wanted = pages_to_read(plan.token_keep, layer.length - first_key, plan.rule)
        kernels.append(PagedAttention(query, layer, first_key, wanted, plan.rule, *scores))
        return kernels[-1]


def has_numba() -> bool:
    """Whether numba, an optional dependency, is installed and can compile the kernel; the first call compiles it."""
    return loads("numba_memory") and loads("numba_attention")


def supports(query: torch.Tensor, layer: object) -> bool:
    """Whether the kernel can attend from `query` `(rows, heads, 1, head_dim)` to the keys of a layer."""
    return (
        isinstance(layer, PagedLayer)
        and query.device.type == "cpu"
        and query.dtype == layer.dtype
        and {query.dtype, layer.stored_dtype} <= set(DTYPES)
        and query.stride(-1) == 1
        and not query.requires_grad
        and query.shape[1] // layer.keys.shape[1] <= MOST_HEADS_IN_GROUP
        and has_numba()
    )


class CompiledAttention:
    """A compiled kernel of decode attention, set up for the layers of one shape in one step.

    With room for more slots, it can be set up again for later steps of the same rows.

    Attributes:
        room (`int`): Most slots of a layer.
        kernel (`ModuleType`): The module of the kernel, with the places of its arguments.
        arguments (`np.ndarray`): Its arguments.
        shape (`tuple` of `int`): Shape of the output, `(rows, 1, heads, value_dim)`.
        scaling (`float`, *optional*): Scale of the scores; `1 / sqrt(head_dim)` by default.
        soft_cap (`float`, *optional*): Scaled scores `x` become `soft_cap * tanh(x / soft_cap)`.
        dtype (`torch.dtype`): Of keys and values, as they are stored.
    """

    kernel: ModuleType
    arguments: np.ndarray
    room: int
    shape: tuple[int, int, int, int]
    scaling: float | None
    soft_cap: float | None
    dtype: torch.dtype

    def fits(
        self, query: torch.Tensor, layer: PagedLayer, scaling: float | None, soft_cap: float | None = None
    ) -> bool:
        """Whether a layer has the shapes, the dtype and the scores for which this was set up."""
        rows, _, heads, value_dim = self.shape
        a, kernel = self.arguments, self.kernel
        return (
            query.shape == (rows, heads, 1, a[kernel.DIM])
            and layer.keys.shape == (rows, a[kernel.KV_HEADS], a[kernel.SLOTS], a[kernel.DIM])
            and layer.values.shape[-1] == value_dim
            and (scaling, soft_cap) == (self.scaling, self.soft_cap)
            and query.dtype == layer.dtype
            and layer.stored_dtype == self.dtype
        )


class PagedAttention(CompiledAttention):
    """Decode attention over the best pages of layers of one shape, for one decode step.

    Args:
        query (`torch.Tensor` of shape `(rows, heads, 1, head_dim)`): A query of the step.
        layer ([`StoredLayer`]): A layer, with the key and value of the new token in it.
        first_key (`torch.LongTensor` of shape `(rows,)`): Slot of the first key that every row sees.
        wanted (`torch.LongTensor` of shape `(rows,)`): Number of pages that a head reads. If it reads all
            pages, none is scored.
        rule ([`SelectionRule`]): Page size, and per query head or per group.
        scaling (`float`, *optional*): Scale of the scores; `1 / sqrt(head_dim)` by default.
        soft_cap (`float`, *optional*): Scaled scores `x` become `soft_cap * tanh(x / soft_cap)`.
        ahead (`int`, *optional*, defaults to 0): Slots of later steps that there is room for.
    """

    def __init__(
        self,
        query: torch.Tensor,
        layer: StoredLayer,
        first_key: torch.Tensor,
        wanted: torch.Tensor,
        rule: SelectionRule,
        scaling: float | None,
        soft_cap: float | None = None,
        ahead: int = 0,
    ):
        from ....kernels.cpu import numba_attention as kernel

        self.kernel, self.first_key, self.room = kernel, first_key.contiguous(), layer.length + ahead
        self.dtype = layer.stored_dtype
        compiled = kernel.attend_float32 if self.dtype == torch.float32 else kernel.attend_bfloat16
        self.address = compiled.address
        rows, heads, _, dim = query.shape
        kv_heads, value_dim = layer.keys.shape[1], layer.values.shape[-1]
        group, size = heads // kv_heads, rule.page_size
        pairs, pages = rows * kv_heads, -(-self.room // size)
        self._most_splits = -(-TASKS_PER_THREAD * torch.get_num_threads() // pairs)
        floats_each = group * (3 * dim + pages)
        words_each = 1 + 2 * pages + kernel.BINS
        block = max(kernel.BLOCK // size, 1) * size
        parts_each = group * (2 + value_dim) + size * max(dim, value_dim) + group * block
        sizes = (1 + pairs * floats_each, pairs * words_each, pairs * self._most_splits * parts_each)
        self.scratch = torch.empty(sum(sizes), dtype=torch.float32)
        self.scratch.numpy()[0] = dim**-0.5 if scaling is None else scaling
        floats = self.scratch.data_ptr()
        words, parts = floats + 4 * sizes[0], floats + 4 * (sizes[0] + sizes[1])
        self.shape, self.scaling, self.soft_cap = (rows, 1, heads, value_dim), scaling, soft_cap
        arguments = np.zeros(kernel.HEADER + 2 * pairs, dtype=np.int64)
        arguments[kernel.FIRST] = self.first_key.data_ptr()
        arguments[kernel.ROWS : kernel.CAPACITY] = rows, kv_heads, group, dim, value_dim
        arguments[kernel.PAGE_SIZE], arguments[kernel.PER_GROUP] = size, rule.selection == "group"
        arguments[kernel.SOFT_CAP] = bits_of(soft_cap or 0.0)
        arguments[kernel.ANCHORED] = rule.recent_tokens if rule.anchor_pages else 0
        arguments[kernel.FLOATS : kernel.ANCHORED] = (
            floats,
            floats_each,
            words,
            words_each,
            parts,
            parts_each,
            pages,
            layer.stored_dtype.itemsize,
        )
        self.arguments, self.data = arguments, arguments.ctypes.data
        self.set_step(layer.length, wanted)

    def set_step(self, slots: int, wanted: torch.Tensor | None) -> None:
        """Set what differs from step to step.

        Args:
            slots (`int`): Slots of a layer, up to `room`.
            wanted (`torch.LongTensor` of shape `(rows,)`, *optional*): See the class; `None` for all pages.
        """
        kernel, a = self.kernel, self.arguments
        size = int(a[kernel.PAGE_SIZE])
        seen = -((self.first_key.numpy() - slots) // size)
        self.wanted = seen if wanted is None else wanted.contiguous().numpy()
        self.selects = wanted is not None and bool((self.wanted < seen).any())
        a[kernel.WANTED], a[kernel.SLOTS] = self.wanted.ctypes.data, slots
        a[kernel.SPLITS] = max(1, min(self._most_splits, -(-slots // size)))

    def __call__(self, query: torch.Tensor, layer: PagedLayer) -> torch.Tensor:
        """Attention of one new token per row, `(rows, 1, heads, value_dim)`. Updates the page index."""
        kernel, a = self.kernel, self.arguments
        keys, values, capacity = layer.flat_store()
        query, dtype = query.float(), query.dtype
        output = query.new_empty(self.shape)
        a[kernel.QUERY], a[kernel.QUERY_ROW], a[kernel.QUERY_HEAD] = query.data_ptr(), query.stride(0), query.stride(1)
        a[kernel.KEYS], a[kernel.VALUES], a[kernel.OUTPUT] = keys.data_ptr(), values.data_ptr(), output.data_ptr()
        a[kernel.CAPACITY] = capacity
        if self.selects:
            upper, lower, page_capacity, indexed = layer.page_store()
            a[kernel.UPPER], a[kernel.LOWER] = upper.data_ptr(), lower.data_ptr()
            a[kernel.PAGE_CAPACITY], a[kernel.INDEXED] = page_capacity, indexed
        a[kernel.NEXT :] = 0
        run_in_torch_threads(self.address, self.data)
        if self.selects:
            layer.mark_indexed()
        return output.to(dtype)


STEP_ATTENTION.register("numba", NumbaPages())
