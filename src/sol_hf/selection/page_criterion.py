# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Criteria that read whole pages, chosen by the page index of the cache."""

import dataclasses
import math
from typing import ClassVar

import torch

from .candidates import Candidates
from .channels import largest
from .criterion import ROUNDING, Criterion, SelectionCost
from .pages import anchors, choose_pages, pages_to_read, with_anchors
from .ranking import share_scores
from .rule import Selection, SelectionRule


class PageCriterion(Criterion):
    """Reads the pages with the highest scores, `ceil(token_keep * keys)` keys rounded up to whole pages.

    The score of a page is linear in its bounds: `a . maximum + b . minimum`. A subclass computes the vectors `a` and
    `b` from the query.
    """

    chooses_pages: ClassVar[bool] = True
    prefix_to_stagger: ClassVar[int | None] = 0

    def page_queries(self, query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The vectors to multiply with the maxima and the minima of pages, each of the shape of `query`.

        Args:
            query (`torch.Tensor` of shape `(..., head_dim)`): Queries.
        """
        raise NotImplementedError

    def select(self, candidates: Candidates, token_keep: torch.Tensor, rule: SelectionRule) -> Selection:
        upper, lower = candidates.page_bounds()
        with_upper, with_lower = self.page_queries(candidates.query)
        scores = with_upper @ upper.transpose(-1, -2) + with_lower @ lower.transpose(-1, -2)
        order, in_use = choose_pages(
            scores, token_keep, candidates.page_origin, candidates.first_key, candidates.slots, rule
        )
        ranks = order[..., None] * rule.page_size + torch.arange(rule.page_size, device=scores.device)
        return Selection(ranks.flatten(2), in_use.repeat_interleave(rule.page_size, dim=-1))

    def page_mask(
        self, scores: torch.Tensor, token_keep: torch.Tensor, count: torch.Tensor | int, rule: SelectionRule
    ) -> torch.Tensor:
        """The selection of [`PageCriterion.select`] as a mask `(rows, H, pages)`.

        For rows that share the prefix of a cache, where the first key begins a page.

        Args:
            scores (`torch.Tensor` of shape `(rows, kv_heads, group, pages)`): Scores of pages, -inf for those that a
                row does not see.
            token_keep (`torch.Tensor` of shape `(rows,)`): Fraction of the keys to read.
            count (`int` or `torch.Tensor` of shape `(rows,)`): Keys that a row sees.
            rule ([`SelectionRule`]): Page size, and per query head or per group.
        """
        counts = torch.as_tensor(count, device=scores.device).expand(len(scores))
        return largest(with_anchors(share_scores(scores, rule), counts, rule), pages_to_read(token_keep, counts, rule))

    def keys_read(self, rule: SelectionRule, token_keep: float, keys: int) -> int:
        if token_keep >= 1:
            return keys
        pages = max(1, math.ceil(math.ceil(token_keep * keys - ROUNDING) / rule.page_size))
        if rule.anchor_pages:
            pages = max(pages, int(anchors(torch.tensor(keys), rule)))
        return min(keys, pages * rule.page_size)

    def cost(self, rule: SelectionRule, token_keep: float, keys: int, group: int) -> SelectionCost:
        """See [`Criterion`]. The maximum and minimum of a page are as large as a key and a value."""
        cost = super().cost(rule, token_keep, keys, group)
        if token_keep >= 1:
            return cost
        pages = math.ceil(keys / rule.page_size)
        return dataclasses.replace(cost, moved=cost.moved + pages, scored=2 * pages)
