# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Attention by Triton kernels, on CUDA.

They score pages, choose them, and attend to them in the storage of the cache layer.
"""

import functools
from typing import ClassVar

import torch

from ....cache.paged_layer import PagedLayer
from ....selection.pages import keep_for_anchors, recent_page
from ....selection.rule import SelectionRule
from ...dispatch import Implementation, Prepared
from ...plan import AttentionKernel
from ..stored_keys import refuse_capture, rows_on, triton_supports
from .operation import STEP_ATTENTION, StepAttention


class TritonPages(Implementation[StepAttention]):
    """[`TritonPagedAttention`], set up once per step.

    Dense attention on a GPU is left to the base, unless `backend="fast"` asks for the kernels.
    """

    order: ClassVar[int] = 40

    def prepare(self, call: StepAttention) -> Prepared | None:
        plan, layer, query = call.plan, call.layer, call.query
        is_wanted = plan.backend == "fast" or plan.token_keep is not None
        usable = is_wanted and isinstance(layer, PagedLayer) and triton_supports(query, layer)
        if usable and call.changes.is_none and call.reads_pages and call.is_stored:
            return functools.partial(self._kernel(call, layer), query, layer)
        refuse_capture(plan, query)
        return None

    def _kernel(self, call: StepAttention, layer: PagedLayer) -> AttentionKernel:
        """In a captured step the number of keys of a row is read on the device."""
        plan, query = call.plan, call.query
        kernels = plan.shared.kernels.setdefault("triton", [])
        for kernel in kernels:
            if kernel.fits(query, layer, call.scaling):
                return kernel
        rows = plan.rows_on_device or rows_on(query.device, plan.cache, len(query), layer.length)
        keep = None if plan.token_keep is None else plan.token_keep.to(query.device)
        kernels.append(
            TritonPagedAttention(keep, rows.first_key, rows.count, plan.cache.padding_range, plan.rule, call.scaling)
        )
        return kernels[-1]


class TritonPagedAttention:
    """Decode attention over the best pages of the layers of one decode step.

    Args:
        token_keep (`torch.Tensor` of shape `(rows,)`, *optional*): Fraction of the cached tokens to read; all of them
            without it.
        first_key (`torch.LongTensor` of shape `(rows,)`): Slot of every row's first real token.
        count (`torch.LongTensor` of shape `(rows,)`): Keys of every row, the new token's included.
        padding (`tuple[int, int]`): Smallest and largest value of `first_key`, known to the host.
        rule ([`SelectionRule`]): Page size, and per query head or per group.
        scaling (`float`, *optional*): Scale of the scores; `1 / sqrt(head_dim)` by default.
    """

    def __init__(
        self,
        token_keep: torch.Tensor | None,
        first_key: torch.Tensor,
        count: torch.Tensor,
        padding: tuple[int, int],
        rule: SelectionRule,
        scaling: float | None,
    ):
        keep = torch.ones(len(first_key), device=first_key.device) if token_keep is None else token_keep
        self.token_keep, self.first_key, self.count = keep.float().contiguous(), first_key, count
        self.padding, self.rule, self.scaling = padding, rule, scaling
        self.is_shared = rule.selection == "group" or token_keep is None  # all heads read the same keys

    def fits(
        self, query: torch.Tensor, layer: PagedLayer, scaling: float | None, soft_cap: float | None = None
    ) -> bool:
        """Whether a layer can be attended to with these settings."""
        known = scaling == self.scaling and soft_cap is None
        return known and len(query) == len(self.first_key) and query.device == self.first_key.device

    def __call__(self, query: torch.Tensor, layer: PagedLayer) -> torch.Tensor:
        """Attention of one new token per row, `(rows, 1, heads, value_dim)`. Updates the page index."""
        from ....kernels.cuda import attention as triton_attention
        from ....kernels.cuda import pages as triton_pages
        from ....kernels.cuda import select_pages as triton_select

        keys, values = layer.stores()
        upper, lower, pages = layer.page_stores(self.first_key, self.padding)
        size, shared = self.rule.page_size, self.is_shared
        keep = keep_for_anchors(self.token_keep, self.count, self.rule)
        scores = triton_pages.score_pages(query, upper, lower, keep, self.count, pages, size, shared)
        if self.rule.anchor_pages:
            page = torch.arange(pages, device=scores.device)
            is_anchor = (page == 0) | (page >= recent_page(self.count, self.rule)[:, None])
            scores.masked_fill_(is_anchor[:, None], float("inf"))
        chosen, chosen_count = triton_select.select_largest(scores, keep, self.count, size, False)
        scaling = query.shape[-1] ** -0.5 if self.scaling is None else self.scaling
        return triton_attention.attend_pages(
            query, keys, values, chosen, chosen_count, self.first_key, self.count, size, scaling
        )


STEP_ATTENTION.register("triton", TritonPages())
