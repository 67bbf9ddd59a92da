# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The keys that a decode step reads, selected by the plan's criterion."""

import torch

from ....cache.paged_layer import PagedLayer
from ....selection.candidates import Candidates
from ....selection.criterion import CRITERIA
from ....selection.ranking import group_queries
from ....selection.rule import Selection
from ..stored_keys import is_stored
from .operation import StepAttention


class LayerCandidates(Candidates):
    """The cached keys of a layer, with the layer's page index if it belongs to these keys.

    Args:
        call ([`StepAttention`]): Layer, queries and keys.
    """

    def __init__(self, call: StepAttention):
        page_origin, first_key = _row_origins(call)
        grouped = group_queries(call.query, call.key.shape[1])
        super().__init__(grouped, call.key, page_origin, first_key, call.plan.rule.page_size, call.scaling)
        self._layer, self._padding_range = call.layer, call.plan.cache.padding_range

    def page_bounds(self) -> tuple[torch.Tensor, torch.Tensor]:
        if isinstance(self._layer, PagedLayer) and is_stored(self._layer, self._keys):
            upper, lower = self._layer.page_index(self.first_key, self._padding_range)
            return upper.to(self._keys.dtype), lower.to(self._keys.dtype)
        return super().page_bounds()

    def coded_scores(self, bits: int) -> torch.Tensor:
        if isinstance(self._layer, PagedLayer) and is_stored(self._layer, self._keys):
            index = self._layer.sketch(bits, self.first_key, self._padding_range)
            codes, scale = index.codes(self.query.shape[-1]), index.scale[:, :, None, : index.tokens]
            return self.query.float() @ codes.float().transpose(2, 3) * scale.float()
        return super().coded_scores(bits)


def _row_origins(call: StepAttention) -> tuple[torch.Tensor, torch.Tensor]:
    """`page_origin` and `first_key` of [`Candidates`], each of shape `(rows,)`."""
    device, padding = call.key.device, call.plan.cache.padding
    if padding is None:
        padding = torch.zeros(len(call.query), dtype=torch.long, device=device)
    first_key = padding.to(device)
    dropped = call.layer.get_seq_length() - call.key.shape[2]
    if dropped == 0:
        return first_key, first_key
    # A sliding-window layer has only its last keys. Pages stay aligned to the row's first token, which was dropped.
    visible_key = (first_key - dropped).clamp(min=0)
    place_in_page = (dropped - first_key).clamp(min=0) % call.plan.rule.page_size
    return visible_key - place_in_page, visible_key


def select_keys(call: StepAttention) -> tuple[Candidates, Selection]:
    """The keys that a step with a `token_keep` may read, and those that the criterion selects."""
    token_keep, rule = call.plan.token_keep, call.plan.rule
    assert token_keep is not None, "a step without it reads all keys"
    candidates = LayerCandidates(call)
    return candidates, CRITERIA[rule.criterion].select(candidates, token_keep.to(call.key.device), rule)
