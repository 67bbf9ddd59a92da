# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Pages of keys: their bounds, their scores for a query, and the choice of pages.

A page is `page_size` consecutive keys, counted from the first key of a batch row. Its *bounds* are the maximum and the
minimum of every channel over its keys.
"""

import torch

from .channels import kept_count
from .ranking import share_scores, top_ranked
from .rule import SelectionRule


def page_bounds(
    keys: torch.Tensor, page_size: int, page_origin: torch.Tensor, first_key: torch.Tensor, pages: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The bounds of every page, computed from its keys.

    Args:
        keys (`torch.Tensor` of shape `(rows, kv_heads, slots, head_dim)`): Cached keys.
        page_size (`int`): Keys in a page.
        page_origin (`torch.Tensor` of shape `(rows,)`): Slot at which a row's page 0 begins; may be negative.
        first_key (`torch.Tensor` of shape `(rows,)`): First slot that holds a key of the row, not padding.
        pages (`int`): Number of pages to describe.

    Returns:
        Two `torch.Tensor` of shape `(rows, kv_heads, pages, head_dim)`; 0 for a page without keys.
    """
    rows, heads, slots, dim = keys.shape
    slot = page_origin[:, None] + torch.arange(pages * page_size, device=keys.device)
    valid = (slot >= first_key[:, None]) & (slot < slots)
    index = slot.clamp(0, slots - 1)[:, None, :, None].expand(rows, heads, -1, dim)
    paged = keys.gather(2, index).view(rows, heads, pages, page_size, dim)
    valid = valid.view(rows, 1, pages, page_size, 1)
    empty = ~valid.any(dim=3)
    upper = paged.masked_fill(~valid, float("-inf")).amax(dim=3).masked_fill(empty, 0)
    lower = paged.masked_fill(~valid, float("inf")).amin(dim=3).masked_fill(empty, 0)
    return upper, lower


def split_by_sign(query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The positive and the negative part of queries; their sum is the query."""
    return query.clamp(min=0), query.clamp(max=0)


def page_scores(query: torch.Tensor, upper: torch.Tensor, lower: torch.Tensor) -> torch.Tensor:
    """Upper bound of `q . k` over the keys of every page: the sum over channels of max(q * max, q * min).

    It equals relu(q) . max - relu(-q) . min: two small matrix products instead of an intermediate with one entry per
    query, page and channel.

    Args:
        query (`torch.Tensor` of shape `(..., queries, head_dim)`): Queries that use the same pages.
        upper (`torch.Tensor` of shape `(..., pages, head_dim)`): Maxima, from [`page_bounds`].
        lower (`torch.Tensor` of shape `(..., pages, head_dim)`): Minima.

    Returns:
        `torch.Tensor` of shape `(..., queries, pages)`.
    """
    positive, negative = split_by_sign(query)
    return positive @ upper.transpose(-1, -2) + negative @ lower.transpose(-1, -2)


def choose_pages(
    scores: torch.Tensor,
    token_keep: torch.Tensor,
    page_origin: torch.Tensor,
    first_key: torch.Tensor,
    slots: int,
    rule: SelectionRule,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The pages with the highest scores, and a mask of those to read.

    Args:
        scores (`torch.Tensor` of shape `(rows, kv_heads, group, pages)`): From [`page_scores`].
        token_keep (`torch.Tensor` of shape `(rows,)`): Fraction of the keys to read.
        page_origin (`torch.Tensor` of shape `(rows,)`): As in [`page_bounds`].
        first_key (`torch.Tensor` of shape `(rows,)`): As in [`page_bounds`].
        slots (`int`): Number of cached slots.
        rule ([`SelectionRule`]): Page size, and per query head or per group.

    Returns:
        Numbers of pages `(rows, H, m)`, by descending score, and a mask of the same shape, true for those to read.
    """
    pages = scores.shape[-1]
    has_keys = torch.arange(pages, device=scores.device) * rule.page_size < (slots - page_origin)[:, None]
    scores = share_scores(scores, rule).masked_fill(~has_keys[:, None], float("-inf"))
    scores = with_anchors(scores, slots - page_origin, rule)
    wanted = pages_to_read(token_keep, slots - first_key, rule, slots - page_origin)
    # A window that begins within a page spans one page more than its keys would fill.
    return top_ranked(
        scores, torch.where(kept_count(token_keep, slots - first_key) >= slots - first_key, pages, wanted)
    )


def with_anchors(scores: torch.Tensor, count: torch.Tensor, rule: SelectionRule) -> torch.Tensor:
    """Scores of pages `(rows, H, pages)` with the highest of all for those that `anchor_pages` always reads.

    Args:
        scores (`torch.Tensor` of shape `(rows, H, pages)`): Scores, -inf for pages without keys that the row sees.
        count (`torch.Tensor` of shape `(rows,)`): Keys of every row from the beginning of its page 0.
        rule ([`SelectionRule`]): Page size, and which pages are always read.
    """
    if not rule.anchor_pages:
        return scores
    seen = scores > float("-inf")
    page = seen.cumsum(dim=-1) - 1
    is_anchor = seen & ((page == 0) | (page >= recent_page(count, rule)[:, None, None]))
    return scores.masked_fill(is_anchor, float("inf"))


def recent_page(count: torch.Tensor, rule: SelectionRule) -> torch.Tensor:
    """The first of the pages that hold the last tokens of `count`."""
    return torch.div((count - rule.recent_tokens).clamp(min=0), rule.page_size, rounding_mode="floor")


def pages_to_read(
    token_keep: torch.Tensor | None, count: torch.Tensor, rule: SelectionRule, from_page: torch.Tensor | None = None
) -> torch.Tensor:
    """Number of pages that [`choose_pages`] reads, `(rows,)`.

    Args:
        token_keep (`torch.Tensor` of shape `(rows,)`, *optional*): Fraction of the keys to read; all by default.
        count (`torch.Tensor` of shape `(rows,)`): Keys of every row.
        rule ([`SelectionRule`]): Page size, and which pages are always read.
        from_page (`torch.Tensor` of shape `(rows,)`, *optional*): Keys of every row from the beginning of its page 0;
            `count` by default, for rows whose first key begins a page.
    """
    wanted = pages_for(count if token_keep is None else kept_count(token_keep, count), rule)
    if not rule.anchor_pages:
        return wanted
    return torch.maximum(wanted, anchors(count if from_page is None else from_page, rule))


def anchors(count: torch.Tensor, rule: SelectionRule) -> torch.Tensor:
    """Number of the pages that `anchor_pages` always reads, of the shape of `count`, the keys from page 0 on."""
    recent = recent_page(count, rule)
    return pages_for(count, rule) - recent + (recent > 0)


def pages_for(tokens: torch.Tensor, rule: SelectionRule) -> torch.Tensor:
    """Number of pages that `tokens` keys occupy, `(rows,)`; the last one may not be full."""
    return torch.div(tokens + (rule.page_size - 1), rule.page_size, rounding_mode="floor")


def keep_for_anchors(token_keep: torch.Tensor, count: torch.Tensor, rule: SelectionRule) -> torch.Tensor:
    """The least `token_keep` `(rows,)` from the given one on whose pages include those that are always read.

    For code that computes the number of pages from it on the device, and rows whose first key begins a page.
    """
    if not rule.anchor_pages:
        return token_keep
    keys_before_last = (anchors(count, rule) - 1) * rule.page_size
    return torch.maximum(token_keep, (keys_before_last + 0.5) / count)
