# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Attention over single tokens by Triton kernels, on CUDA.

They encode new keys into the index of the cache layer, score all tokens by it, choose, and attend to the chosen tokens
in the layer's storage.
"""

import functools
from typing import ClassVar

import torch

from ....cache.paged_layer import PagedLayer
from ....selection.criterion import CRITERIA
from ....selection.rule import SelectionRule
from ...dispatch import Implementation, Prepared
from ...plan import AttentionKernel, DeviceRows
from ..stored_keys import rows_on, triton_supports
from .operation import STEP_ATTENTION, StepAttention


MOST_ENCODED = 16
"""Number of new keys up to which the kernel encodes them, and not plain torch."""


class TritonTokens(Implementation[StepAttention]):
    """[`TritonTokenAttention`], set up once per step."""

    order: ClassVar[int] = 45

    def prepare(self, call: StepAttention) -> Prepared | None:
        plan, layer, query = call.plan, call.layer, call.query
        if plan.token_keep is None or not (call.changes.is_none and CRITERIA[plan.rule.criterion].ranks_codes):
            return None
        if not (isinstance(layer, PagedLayer) and triton_supports(query, layer) and call.is_stored):
            return None
        return functools.partial(self._kernel(call, layer), query, layer)

    def _kernel(self, call: StepAttention, layer: PagedLayer) -> AttentionKernel:
        """In a captured step the number of keys of a row is read on the device."""
        plan, query = call.plan, call.query
        kernels = plan.shared.kernels.setdefault("triton_tokens", [])
        for kernel in kernels:
            if kernel.fits(query, layer, call.scaling):
                return kernel
        assert plan.token_keep is not None, "a step without it is not prepared"
        rows = plan.rows_on_device or rows_on(query.device, plan.cache, len(query), layer.length)
        keep = plan.token_keep.to(query.device)
        kernels.append(TritonTokenAttention(keep, rows, plan.cache.padding_range, plan.rule, call.scaling))
        return kernels[-1]


class TritonTokenAttention:
    """Decode attention over the best tokens of the layers of one decode step.

    Args:
        token_keep (`torch.Tensor` of shape `(rows,)`): Fraction of the cached tokens to read.
        rows ([`DeviceRows`]): First key and number of keys of every row, the new token's included.
        padding (`tuple[int, int]`): Smallest and largest slot of a first key, known to the host.
        rule ([`SelectionRule`]): Bits of the index, the tokens that are always read, and who chooses.
        scaling (`float`, *optional*): Scale of the scores; `1 / sqrt(head_dim)` by default.
    """

    def __init__(
        self,
        token_keep: torch.Tensor,
        rows: DeviceRows,
        padding: tuple[int, int],
        rule: SelectionRule,
        scaling: float | None,
    ):
        self.first_key, self.count, self.padding = rows.first_key, rows.count, padding
        self.rule, self.scaling = rule, scaling
        self.wanted = CRITERIA[rule.criterion].tokens_wanted(rule, token_keep, rows.count).int()

    def fits(
        self, query: torch.Tensor, layer: PagedLayer, scaling: float | None, soft_cap: float | None = None
    ) -> bool:
        """Whether a layer can be attended to with these settings."""
        known = scaling == self.scaling and soft_cap is None
        return known and len(query) == len(self.first_key) and query.device == self.first_key.device

    def __call__(self, query: torch.Tensor, layer: PagedLayer) -> torch.Tensor:
        """Attention of one new token per row, `(rows, 1, heads, value_dim)`. Updates the index."""
        from ....kernels.cuda.attention import attend_pages
        from ....kernels.cuda.score_tokens import score_tokens
        from ....kernels.cuda.select_tokens import select_tokens
        from ....kernels.cuda.sketch_index import encode_tokens

        rule, (keys, values) = self.rule, layer.stores()
        index = layer.sketch(rule.index_bits, self.first_key, self.padding, MOST_ENCODED, keeps_means=True)
        packed, scale, mean = index.stores
        if index.tokens < layer.length:
            left = layer.length - index.tokens
            encode_tokens(keys, mean, packed, scale, self.first_key, self.count, left, rule.index_bits)
            index.tokens = layer.length
        scaling = query.shape[-1] ** -0.5 if self.scaling is None else self.scaling
        always = [rule.sink_tokens, rule.recent_tokens]
        scores = score_tokens(
            query, packed, scale, self.first_key, self.count, self.wanted, rule.index_bits, always, scaling,
            rule.selection != "head",
        )  # fmt: skip
        pool = keys.shape[1] if rule.selection == "layer" else 1
        chosen, chosen_count = select_tokens(scores, self.wanted, self.count, pool)
        return attend_pages(query, keys, values, chosen, chosen_count, self.first_key, self.count, 1, scaling)


STEP_ATTENTION.register("triton_tokens", TritonTokens())
