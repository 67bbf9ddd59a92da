# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Torch's side of the Triton kernels for decode attention: what they support, and the order in which they run."""

import torch

from ...cache.paged_layer import PagedLayer
from ...kernels.cuda import triton_support
from ...selection.rule import SelectionRule


MOST_CHANNELS = 256
MOST_PAGES = (1 << 16) - 1


def supports(query: torch.Tensor, layer: object) -> bool:
    """Whether the kernels can attend from `query` `(rows, heads, tokens, head_dim)` to the keys of a layer."""
    return (
        isinstance(layer, PagedLayer)
        and triton_support.supports(query)
        and query.dtype == layer.dtype
        and query.stride(-1) == 1
        and max(query.shape[-1], layer.values.shape[-1]) <= MOST_CHANNELS
        and layer.stores()[0].shape[2] // layer.page_size < MOST_PAGES
    )


class TritonPagedAttention:
    """Decode attention over the best pages of the layers of one decode step.

    Args:
        token_keep (`torch.Tensor` of shape `(rows,)`, *optional*): Fraction of the cached tokens to read; all of them
            without it.
        first (`torch.LongTensor` of shape `(rows,)`): Slot of every row's first real token.
        count (`torch.LongTensor` of shape `(rows,)`): Keys of every row, the new token's included.
        padding (`tuple[int, int]`): Smallest and largest value of `first`, known to the host.
        rule ([`SelectionRule`]): Page size, and per query head or per group.
        scaling (`float`, *optional*): Scale of the scores; `1 / sqrt(head_dim)` by default.
    """

    def __init__(
        self,
        token_keep: torch.Tensor | None,
        first: torch.Tensor,
        count: torch.Tensor,
        padding: tuple[int, int],
        rule: SelectionRule,
        scaling: float | None,
    ):
        keep = torch.ones(len(first), device=first.device) if token_keep is None else token_keep
        self.token_keep, self.first, self.count = keep.float().contiguous(), first, count
        self.padding, self.rule, self.scaling = padding, rule, scaling
        self.is_shared = rule.page_selection == "group" or token_keep is None  # all heads read the same keys

    def fits(self, query: torch.Tensor, layer: PagedLayer, scaling: float | None) -> bool:
        """Whether a layer can be attended to with these settings."""
        return scaling == self.scaling and len(query) == len(self.first) and query.device == self.first.device

    def __call__(self, query: torch.Tensor, layer: PagedLayer) -> torch.Tensor:
        """Attention of one new token per row, `(rows, 1, heads, value_dim)`; brings the page index up to date."""
        from ...kernels.cuda import attention as triton_attention
        from ...kernels.cuda import pages as triton_pages
        from ...kernels.cuda import select_pages as triton_select

        keys, values = layer.stores()
        upper, lower, pages = layer.page_stores(self.first, self.padding)
        size, shared = self.rule.page_size, self.is_shared
        scores = triton_pages.score_pages(query, upper, lower, self.token_keep, self.count, pages, size, shared)
        chosen, chosen_count = triton_select.select_largest(scores, self.token_keep, self.count, size, False)
        scaling = query.shape[-1] ** -0.5 if self.scaling is None else self.scaling
        return triton_attention.attend_pages(
            query, keys, values, chosen, chosen_count, self.first, self.count, size, scaling
        )


class TritonChunkAttention:
    """Dense attention of the last tokens of every row, those of a KV refresh.

    Args:
        first (`torch.LongTensor` of shape `(rows,)`): Slot of every row's first real token.
        count (`torch.LongTensor` of shape `(rows,)`): Keys of every row, the last tokens' included.
    """

    def __init__(self, first: torch.Tensor, count: torch.Tensor):
        self.first, self.count = first, count

    def __call__(self, query: torch.Tensor, layer: PagedLayer, scaling: float | None) -> torch.Tensor:
        """Attention from `query` `(rows, heads, tokens, head_dim)`, of shape `(rows, tokens, heads, value_dim)`."""
        from ...kernels.cuda import chunk_attention as triton_chunk

        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        output = triton_chunk.attend_chunk(query, *layer.stores(), self.first, self.count, scaling)
        return output.transpose(1, 2)
