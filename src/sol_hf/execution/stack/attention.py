# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The attention of all layers in a program: the kernels of `attention/step`, and how their arguments are set."""

from typing import Any

import numpy as np
import torch

from ...cache.paged_layer import PagedLayer
from ...selection.criterion import CRITERIA
from ...selection.pages import pages_to_read
from ...selection.sketch import MOST_IN_MEAN
from ..attention.step.numba_pages import PagedAttention
from ..attention.step.numba_tokens import TokenAttention
from ..attention.step.operation import StepAttention
from ..plan import StepPlan


ALL, PAGES, TOKENS = "all", "pages", "tokens"


def attention_kind(plan: StepPlan, length: int) -> str | None:
    """How a step attends to a text of `length` tokens; `None` if no kernel does."""
    if plan.token_keep is None:
        return ALL
    criterion = CRITERIA[plan.rule.criterion]
    if criterion.has_token_kernel(plan.rule):
        # Before that the means of the index may change with the new key, which is not known here.
        return TOKENS if length > plan.cache.padding_range[1] + MOST_IN_MEAN else None
    return PAGES if criterion.has_kernels else None


class AttentionOfLayers:
    """The attention of one step, over the keys of all layers.

    Args:
        plan ([`StepPlan`]): The step.
        layers (`list[PagedLayer]`): Cache layers, with room for the new token, which counts in their length.
        query (`torch.Tensor` of shape `(rows, heads, 1, head_dim)`): A tensor like the queries.
        scalings (`list[float]`): Scale of the scores in every layer.
    """

    def __init__(self, plan: StepPlan, layers: list[PagedLayer], query: torch.Tensor, scalings: list[float]):
        self.layers, self.kernel = layers, self._of(plan, layers[0], query, scalings[0])
        self.reads_tokens = isinstance(self.kernel, TokenAttention)

    @staticmethod
    def _of(plan: StepPlan, layer: PagedLayer, query: torch.Tensor, scaling: float) -> PagedAttention | TokenAttention:
        if attention_kind(plan, layer.length - 1) == TOKENS:
            call = StepAttention(plan, 0, query, layer.keys, layer.values, scaling)
            return TokenAttention(call, layer)
        padding = plan.cache.padding
        first_key = torch.zeros(len(query), dtype=torch.long) if padding is None else padding
        wanted = pages_to_read(plan.token_keep, layer.length - first_key, plan.rule)
        return PagedAttention(query, layer, first_key, wanted, plan.rule, scaling)

    @property
    def function(self) -> Any:
        """The compiled function."""
        kernel = self.kernel.kernel
        return kernel.attend_float32 if self.kernel.dtype == torch.float32 else kernel.attend_bfloat16

    @property
    def words(self) -> int:
        """Numbers that the arguments of a layer take."""
        return len(self.kernel.arguments)

    def fill(self, arguments: np.ndarray, query: Any, output: Any) -> None:
        """Write the arguments of all layers, `(layers, words)`.

        `query` and `output` are the [`Lines`] of the queries and of what is attended to.
        """
        kernel, layers = self.kernel.kernel, self.layers
        arguments[:] = self.kernel.arguments
        dim = int(self.kernel.arguments[kernel.DIM])
        arguments[:, kernel.QUERY], arguments[:, kernel.OUTPUT] = query.address, output.address
        arguments[:, kernel.QUERY_ROW], arguments[:, kernel.QUERY_HEAD] = query.stride, dim
        stores = [layer.stores() for layer in layers]
        arguments[:, kernel.KEYS] = [keys.data_ptr() for keys, _ in stores]
        arguments[:, kernel.VALUES] = [values.data_ptr() for _, values in stores]
        arguments[:, kernel.CAPACITY] = [keys.shape[2] for keys, _ in stores]
        if isinstance(self.kernel, TokenAttention):
            self._fill_index(arguments, self.kernel)
        elif self.kernel.selects:
            pages = [layer.page_store() for layer in layers]
            arguments[:, kernel.UPPER] = [upper.data_ptr() for upper, *_ in pages]
            arguments[:, kernel.LOWER] = [lower.data_ptr() for _, lower, *_ in pages]
            arguments[:, kernel.PAGE_CAPACITY] = [capacity for *_, capacity, _ in pages]
            arguments[:, kernel.INDEXED] = [indexed for *_, indexed in pages]

    def _fill_index(self, arguments: np.ndarray, attention: TokenAttention) -> None:
        kernel = attention.kernel
        slots, made = self.layers[0].length, [layer.made_sketch for layer in self.layers]
        indices = [
            index if index is not None and index.packed.shape[2] >= slots else attention.index_of(layer)
            for index, layer in zip(made, self.layers, strict=True)
        ]
        arguments[:, kernel.CODES] = [index.packed.data_ptr() for index in indices]
        arguments[:, kernel.SCALES] = [index.scale.data_ptr() for index in indices]
        arguments[:, kernel.MEAN] = [index.mean.data_ptr() for index in indices]
        arguments[:, kernel.INDEX_CAPACITY] = [index.packed.shape[2] for index in indices]
        arguments[:, kernel.ENCODED] = [index.tokens for index in indices]
        self.indices = indices

    def note_done(self) -> None:
        """Note that the step has brought the index of all layers up to date."""
        if self.reads_tokens:
            for layer, index in zip(self.layers, self.indices, strict=True):
                index.tokens = layer.length
        elif isinstance(self.kernel, PagedAttention) and self.kernel.selects:
            for layer in self.layers:
                layer.mark_indexed()
