# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Attention over single tokens by a kernel that numba compiles, on the CPU.

It ranks all tokens by the 4-bit index of the cache layer, and reads those that the key-value heads choose.
"""

import functools
from typing import ClassVar

import numpy as np
import torch

from ....cache.paged_layer import PagedLayer
from ....cache.sketch_index import SketchIndex
from ....kernels.cpu.compilation import loads
from ....kernels.cpu.program import bits_of
from ....kernels.cpu.torch_threads import run_in_torch_threads
from ....selection.criterion import CRITERIA
from ...dispatch import Implementation, Prepared
from ...plan import AttentionKernel, StepPlan
from .numba_pages import TASKS_PER_THREAD, CompiledAttention, supports
from .operation import STEP_ATTENTION, StepAttention


class NumbaTokens(Implementation[StepAttention]):
    """[`TokenAttention`], set up once per step for all layers of one shape."""

    order: ClassVar[int] = 35

    def prepare(self, call: StepAttention) -> Prepared | None:
        layer = call.layer
        if not (call.reads_tokens and isinstance(layer, PagedLayer) and supports(call.query, layer)):
            return None
        if not call.is_stored or call.query.shape[-1] % 2 or not loads("numba_tokens"):
            return None
        return functools.partial(self._kernel(call, layer), call.query, layer)

    def suits(self, call: StepAttention) -> bool:
        return call.is_long

    def _kernel(self, call: StepAttention, layer: PagedLayer) -> AttentionKernel:
        kernels = call.plan.shared.kernels.setdefault("numba_tokens", [])
        for kernel in kernels:
            if kernel.fits(call.query, layer, call.scaling, call.changes.soft_cap):
                return kernel
        kernels.append(TokenAttention(call, layer))
        return kernels[-1]


class TokenAttention(CompiledAttention):
    """Decode attention over the best tokens of layers of one shape, for one decode step.

    Args:
        call ([`StepAttention`]): A layer's attention in the step.
        layer ([`PagedLayer`]): The layer, with the key and value of the new token in it.
        ahead (`int`, *optional*, defaults to 0): Slots of later steps that there is room for.
    """

    def __init__(self, call: StepAttention, layer: PagedLayer, ahead: int = 0):
        from ....kernels.cpu import numba_attention
        from ....kernels.cpu import numba_tokens as kernel

        plan, query, scores = call.plan, call.query, (call.scaling, call.changes.soft_cap)
        rule, self.scaling, self.soft_cap, self.dtype = plan.rule, *scores, layer.stored_dtype
        rows, heads, _, dim = query.shape
        kv_heads, slots, value_dim = layer.keys.shape[1], layer.length + ahead, layer.values.shape[-1]
        group, pairs = heads // kv_heads, rows * kv_heads
        self.kernel, self.bits, self.padding_range = kernel, rule.index_bits, plan.cache.padding_range
        padding = plan.cache.padding
        self.first_key = torch.zeros(rows, dtype=torch.long) if padding is None else padding.contiguous()
        self.room = slots
        self.address = (kernel.attend_float32 if self.dtype == torch.float32 else kernel.attend_bfloat16).address
        self._most_splits = -(-TASKS_PER_THREAD * torch.get_num_threads() // pairs)
        floats_each = group * (dim + slots) + kernel.BLOCK * dim
        words_each = 1 + slots + numba_attention.BINS
        parts_each = group * (2 + value_dim) + kernel.BLOCK * (max(dim, value_dim) + group)
        sizes = (1 + pairs * (floats_each + slots), pairs * words_each, pairs * self._most_splits * parts_each)
        self.scratch = torch.empty(sum(sizes), dtype=torch.float32)
        self.scratch.numpy()[0] = dim**-0.5 if self.scaling is None else self.scaling
        floats = self.scratch.data_ptr()
        words, parts = floats + 4 * sizes[0], floats + 4 * (sizes[0] + sizes[1])
        self.shape = (rows, 1, heads, value_dim)
        a = np.zeros(kernel.COUNTERS + 2 * rows + pairs, dtype=np.int64)
        a[kernel.FIRST] = self.first_key.data_ptr()
        a[kernel.ROWS : kernel.CAPACITY] = rows, kv_heads, group, dim, value_dim
        a[kernel.SINK], a[kernel.RECENT] = rule.sink_tokens, rule.recent_tokens
        a[kernel.PER_LAYER], a[kernel.MOST] = rule.selection == "layer", slots
        a[kernel.SOFT_CAP] = bits_of(self.soft_cap or 0.0)
        a[kernel.FLOATS], a[kernel.FLOATS_EACH], a[kernel.WORDS], a[kernel.WORDS_EACH] = (
            floats,
            floats_each,
            words,
            words_each,
        )
        a[kernel.PARTS], a[kernel.PARTS_EACH], a[kernel.ITEM_SIZE] = parts, parts_each, self.dtype.itemsize
        self.arguments, self.data = a, a.ctypes.data
        self.set_step(plan, layer.length)

    def set_step(self, plan: StepPlan, slots: int) -> None:
        """Set what differs from step to step: the levels of a plan, and the slots of a layer, up to `room`."""
        kernel, a, rule = self.kernel, self.arguments, plan.rule
        assert plan.token_keep is not None, "a step without it is not prepared"
        wanted = CRITERIA[rule.criterion].tokens_wanted(rule, plan.token_keep, slots - self.first_key)
        self.wanted = wanted.contiguous().numpy()
        a[kernel.WANTED], a[kernel.SLOTS] = self.wanted.ctypes.data, slots
        a[kernel.SPLITS] = max(1, min(self._most_splits, int(self.wanted.max())))

    def index_of(self, layer: PagedLayer) -> SketchIndex:
        """The index of a layer; the kernel encodes the tokens that have no codes, and all where a mean changes."""
        return layer.sketch(self.bits, self.first_key, self.padding_range, most=layer.length, keeps_means=True)

    def __call__(self, query: torch.Tensor, layer: PagedLayer) -> torch.Tensor:
        """Attention of one new token per row, `(rows, 1, heads, value_dim)`. Updates the index."""
        kernel, a, index = self.kernel, self.arguments, self.index_of(layer)
        keys, values, capacity = layer.flat_store()
        query, dtype = query.float(), query.dtype
        output = query.new_empty(self.shape)
        a[kernel.QUERY], a[kernel.QUERY_ROW], a[kernel.QUERY_HEAD] = query.data_ptr(), query.stride(0), query.stride(1)
        a[kernel.KEYS], a[kernel.VALUES], a[kernel.OUTPUT] = keys.data_ptr(), values.data_ptr(), output.data_ptr()
        a[kernel.CAPACITY], a[kernel.INDEX_CAPACITY] = capacity, index.packed.shape[2]
        a[kernel.CODES], a[kernel.SCALES] = index.packed.data_ptr(), index.scale.data_ptr()
        a[kernel.ENCODED], a[kernel.NEXT :] = index.tokens, 0
        a[kernel.MEAN] = index.mean.data_ptr()
        run_in_torch_threads(self.address, self.data)
        index.tokens = layer.length
        return output.to(dtype)


STEP_ATTENTION.register("numba_tokens", NumbaTokens())
