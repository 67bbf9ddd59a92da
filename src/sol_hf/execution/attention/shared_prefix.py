# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Attention of many rollouts over a prefix that they share.

All keys of the prefix are scored in one product for all rollouts of a block. Keys that a query head does not read are
masked, so nothing is copied. Criteria that choose whole pages mask page by page, all others key by key.
"""

import torch

from ...cache.shared_prefix import SharedPrefixLayer
from ...selection.candidates import Candidates
from ...selection.criterion import CRITERIA, Criterion
from ...selection.page_criterion import PageCriterion
from ...selection.ranking import group_queries
from ...selection.rule import SelectionRule
from ...selection.sketch import MOST_IN_MEAN, decode, encode
from .score_changes import ScoreChanges


class SharedCandidates(Candidates):
    """The keys that rows over a shared prefix may read: those of the prefix, and each row's own.

    Args:
        layer ([`SharedPrefixLayer`]): Layer with the prefix and the rows' own keys.
        query (`torch.Tensor` of shape `(rows, kv_heads, group, head_dim)`): Query heads by key-value head.
        scores (`torch.Tensor` of shape `(blocks, kv_heads, repeats * group, slots)`): `q . k` of all these keys.
        scaling (`float`, *optional*): Scale of the scores; `1 / sqrt(head_dim)` by default.
        rows (`torch.LongTensor` of shape `(n,)`, *optional*): The rows to choose for; all by default.
    """

    def __init__(
        self,
        layer: SharedPrefixLayer,
        query: torch.Tensor,
        scores: torch.Tensor,
        scaling: float | None,
        rows: torch.Tensor | None = None,
    ):
        self._layer, self._scores, self._queries, self._rows = layer, scores, query, rows
        query = self._some(query)
        zero = torch.zeros(len(query), dtype=torch.long, device=query.device)
        super().__init__(query, layer.keys, zero, zero, layer.page_size, scaling)

    def _some(self, x: torch.Tensor) -> torch.Tensor:
        """Of all rows those to choose for."""
        return x if self._rows is None else x[self._rows]

    @property
    def hidden_tokens(self) -> torch.Tensor | None:
        """Tokens at the end of the prefix that a row does not see, `(rows,)`; `None` if all rows see all."""
        visible = self._layer.prefix.visible_pages
        if visible is None:
            return None
        hidden = self._layer.prefix.length - visible * self.page_size
        return self._some(hidden.repeat(len(self._queries) // self._layer.repeats))

    @property
    def counts(self) -> torch.Tensor:
        hidden = self.hidden_tokens
        return super().counts if hidden is None else super().counts - hidden

    @property
    def places(self) -> torch.Tensor:
        places, hidden, shared = super().places, self.hidden_tokens, self._layer.prefix.length
        if hidden is None:
            return places
        seen = torch.where(places < (shared - hidden)[:, None], places, -1)
        return torch.where(places < shared, seen, places - hidden[:, None])

    def slots_at(self, places: torch.Tensor) -> torch.Tensor:
        hidden = self.hidden_tokens
        if hidden is None:
            return super().slots_at(places)
        return torch.where(places < (self._layer.prefix.length - hidden)[:, None], places, places + hidden[:, None])

    @property
    def keys(self) -> torch.Tensor:
        prefix = self._layer.prefix.keys.repeat_interleave(self._layer.repeats, dim=0)
        return self._some(torch.cat([prefix, self._layer.keys], dim=2))

    @property
    def stored_keys(self) -> torch.Tensor:
        return self._layer.rounded(self.keys)

    @property
    def slots(self) -> int:
        return self._scores.shape[-1]

    def exact_scores(self) -> torch.Tensor:
        return self._some(self._layer.by_row(self._scores))

    def coded_scores(self, bits: int) -> torch.Tensor:
        layer = self._layer
        if layer.prefix.length < MOST_IN_MEAN:  # each row's own tokens count in its mean
            return super().coded_scores(bits)
        mean, coded = layer.coded_prefix(bits)
        of_prefix = layer.by_row(layer.by_block(self._queries.float()) @ coded.transpose(2, 3))
        keys, means = layer.rounded(self._some(layer.keys)), self._some(mean.repeat_interleave(layer.repeats, dim=0))
        own = decode(*encode(keys, means, bits))
        return torch.cat([self._some(of_prefix), self.query.float() @ own.transpose(2, 3)], dim=-1)


def attend_shared_prefix(
    layer: SharedPrefixLayer,
    rule: SelectionRule,
    token_keep: torch.Tensor | None,
    query: torch.Tensor,
    scaling: float | None,
    changes: ScoreChanges,
) -> torch.Tensor:
    """Attention of one new token per row over shared prefix and own suffix.

    Args:
        layer ([`SharedPrefixLayer`]): Layer that already contains the new token's key and value.
        rule ([`SelectionRule`]): How keys are selected.
        token_keep (`torch.Tensor` of shape `(rows,)`, *optional*): Fraction of the keys to read; all by default.
        query (`torch.Tensor` of shape `(rows, heads, 1, head_dim)`): Query of the new token.
        scaling (`float`, *optional*): Scale of the scores; `1 / sqrt(head_dim)` by default.
        changes ([`ScoreChanges`]): What the base does with the scores, besides scaling.

    Returns:
        `torch.Tensor` of shape `(rows, 1, heads, head_dim)`.
    """
    rows, heads, _, dim = query.shape
    grouped = group_queries(query, layer.prefix.keys.shape[1])
    by_block = layer.by_block(grouped)
    shared = layer.prefix.length
    own = layer.by_block(grouped @ layer.keys.transpose(2, 3))
    scores = torch.cat([by_block @ layer.prefix.keys.transpose(2, 3), own], dim=-1)
    if token_keep is not None:
        _mask_out(layer, rule, token_keep.to(query.device), grouped, scores, scaling)
    if layer.prefix.visible_pages is not None:
        hidden = _hidden(layer.prefix.visible_pages * layer.page_size, shared)
        scores[..., :shared].masked_fill_(hidden.repeat_interleave(grouped.shape[2], dim=0), float("-inf"))
    scale = scaling if scaling is not None else dim**-0.5
    weights = changes.weights(scores.mul_(scale)).to(query.dtype)
    output = layer.by_row(weights[..., :shared] @ layer.prefix.values)
    output = output + layer.by_row(weights[..., shared:]) @ layer.values
    return output.reshape(rows, 1, heads, output.shape[-1])


def _hidden(visible: torch.Tensor, total: int) -> torch.Tensor:
    """A mask `(repeats, total)` of the entries after the first `visible` `(repeats,)`."""
    return torch.arange(total, device=visible.device) >= visible[:, None]


def _mask_out(
    layer: SharedPrefixLayer,
    rule: SelectionRule,
    token_keep: torch.Tensor,
    grouped: torch.Tensor,
    scores: torch.Tensor,
    scaling: float | None,
) -> None:
    """Set `scores` `(blocks, kv_heads, repeats * group, slots)` to -inf where a query head does not read a key."""
    criterion, slots = CRITERIA[rule.criterion], scores.shape[-1]
    if not isinstance(criterion, PageCriterion):
        rows = _rows_to_choose_for(criterion, rule, token_keep, slots)
        if rows is not None and not len(rows):
            return
        candidates = SharedCandidates(layer, grouped, scores, scaling, rows)
        some = token_keep if rows is None else token_keep[rows]
        keep = _per_query(criterion.mask(candidates, some, rule), candidates.query)
        if rows is not None:
            every = torch.ones(*grouped.shape[:3], slots, dtype=torch.bool)
            every[rows] = keep
            keep = every
        scores.masked_fill_(~layer.by_block(keep), -torch.inf)
        return
    keep = layer.by_block(_per_query(_kept_pages(layer, criterion, rule, token_keep, grouped, slots), grouped))
    # Adding 0 or -inf page by page is cheaper than a mask over all keys.
    shared, size = layer.prefix.length, rule.page_size
    bias = torch.zeros_like(keep, dtype=scores.dtype).masked_fill_(~keep, -torch.inf)
    whole = shared // size
    scores[..., :shared].unflatten(-1, (whole, size)).add_(bias[..., :whole, None])
    scores[..., shared:].add_(bias[..., whole:].repeat_interleave(size, dim=-1)[..., : slots - shared])


def _rows_to_choose_for(
    criterion: Criterion, rule: SelectionRule, token_keep: torch.Tensor, slots: int
) -> torch.Tensor | None:
    """Indices of the rows that may leave keys out; `None` for all. On an accelerator, looking would stall it."""
    if token_keep.device.type != "cpu" or not criterion.reads_all(rule, 1.0, slots):
        return None
    rows = (token_keep < 1).nonzero().squeeze(1)
    return None if len(rows) == len(token_keep) else rows


def _per_query(mask: torch.Tensor, grouped: torch.Tensor) -> torch.Tensor:
    """A mask `(rows, H, n)` that several query heads may share, as `(rows, kv_heads, group, n)`."""
    rows, kv_heads, group, _ = grouped.shape
    if mask.shape[1] == kv_heads * group:
        return mask.view(rows, kv_heads, group, -1)
    return mask[:, :, None].expand(rows, kv_heads, group, -1)


def _kept_pages(
    layer: SharedPrefixLayer,
    criterion: PageCriterion,
    rule: SelectionRule,
    token_keep: torch.Tensor,
    grouped: torch.Tensor,
    slots: int,
) -> torch.Tensor:
    """A mask of the pages of prefix and suffix that every head reads, `(rows, H, pages)`.

    Maxima and minima of the prefix are concatenated, and multiplied with the criterion's vectors in one product.
    """
    rows, visible = len(grouped), layer.prefix.visible_pages
    queries = torch.cat(criterion.page_queries(grouped), dim=-1)
    own = torch.cat(layer.page_index(torch.zeros(rows, dtype=torch.long, device=grouped.device), (0, 0)), dim=-1)
    of_prefix = layer.by_row(layer.by_block(queries) @ layer.prefix.bounds.transpose(2, 3))
    count: torch.Tensor | int = slots
    if visible is not None:
        hidden = _hidden(visible, of_prefix.shape[-1]).repeat(rows // layer.repeats, 1)
        of_prefix = of_prefix.masked_fill(hidden[:, None, None], float("-inf"))
        count = slots - hidden.sum(dim=1) * rule.page_size
    page_scores = torch.cat([of_prefix, queries @ own.transpose(2, 3)], dim=-1)
    return criterion.page_mask(page_scores, token_keep, count, rule)
