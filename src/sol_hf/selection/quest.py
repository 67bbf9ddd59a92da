# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The criterion `quest`: pages with the highest bound."""

import torch

from .channels import kept_count, largest
from .ranking import share_scores, top_ranked
from .rule import Selection, SelectionRule


def page_bounds(keys: torch.Tensor, page_size: int, first: torch.Tensor, start: torch.Tensor, pages: int):
    """Per-channel maximum and minimum of the keys of every page, computed from all keys.

    Args:
        keys (`torch.Tensor` of shape `(rows, kv_heads, slots, head_dim)`): Cached keys.
        page_size (`int`): Keys in a page.
        first (`torch.Tensor` of shape `(rows,)`): Slot at which a row's page 0 begins; may be negative.
        start (`torch.Tensor` of shape `(rows,)`): First slot that holds a real key.
        pages (`int`): Number of pages to describe.

    Returns:
        Two `torch.Tensor` of shape `(rows, kv_heads, pages, head_dim)`; 0 for a page without keys.
    """
    rows, heads, slots, dim = keys.shape
    slot = first[:, None] + torch.arange(pages * page_size, device=keys.device)
    valid = (slot >= start[:, None]) & (slot < slots)
    index = slot.clamp(0, slots - 1)[:, None, :, None].expand(rows, heads, -1, dim)
    paged = keys.gather(2, index).view(rows, heads, pages, page_size, dim)
    valid = valid.view(rows, 1, pages, page_size, 1)
    empty = ~valid.any(dim=3)
    upper = paged.masked_fill(~valid, float("-inf")).amax(dim=3).masked_fill(empty, 0)
    lower = paged.masked_fill(~valid, float("inf")).amin(dim=3).masked_fill(empty, 0)
    return upper, lower


def page_scores(grouped: torch.Tensor, upper: torch.Tensor, lower: torch.Tensor) -> torch.Tensor:
    """Upper bound of `q . k` over the keys of every page: the sum over channels of max(q * max, q * min).

    It equals relu(q) . max - relu(-q) . min: two small matrix products instead of an intermediate with one entry per
    query, page and channel.

    Args:
        grouped (`torch.Tensor` of shape `(..., queries, head_dim)`): Queries that look at the same pages.
        upper (`torch.Tensor` of shape `(..., pages, head_dim)`): Maxima, from [`page_bounds`].
        lower (`torch.Tensor` of shape `(..., pages, head_dim)`): Minima.

    Returns:
        `torch.Tensor` of shape `(..., queries, pages)`.
    """
    return grouped.clamp(min=0) @ upper.transpose(-1, -2) + grouped.clamp(max=0) @ lower.transpose(-1, -2)


def select_quest(
    scores: torch.Tensor,
    token_keep: torch.Tensor,
    first: torch.Tensor,
    start: torch.Tensor,
    slots: int,
    rule: SelectionRule,
) -> Selection:
    """Keep the pages with the highest upper bound of `q . k` over their keys.

    Args:
        scores (`torch.Tensor` of shape `(rows, kv_heads, group, pages)`): From [`page_scores`].
        token_keep (`torch.Tensor` of shape `(rows,)`): Fraction of the keys to read.
        first (`torch.Tensor` of shape `(rows,)`): As in [`page_bounds`].
        start (`torch.Tensor` of shape `(rows,)`): As in [`page_bounds`].
        slots (`int`): Number of cached slots.
        rule ([`SelectionRule`]): Page size, and per query head or per group.
    """
    order, in_use = choose_pages(scores, token_keep, first, start, slots, rule)
    ranks = order[..., None] * rule.page_size + torch.arange(rule.page_size, device=scores.device)
    return Selection(ranks.flatten(2), in_use.repeat_interleave(rule.page_size, dim=-1))


def choose_pages(
    scores: torch.Tensor,
    token_keep: torch.Tensor,
    first: torch.Tensor,
    start: torch.Tensor,
    slots: int,
    rule: SelectionRule,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The best pages of every head `(rows, H, m)`, and which of the `m` places are in use; see [`select_quest`]."""
    pages = scores.shape[-1]
    has_keys = torch.arange(pages, device=scores.device) * rule.page_size < (slots - first)[:, None]
    scores = share_scores(scores, rule).masked_fill(~has_keys[:, None], float("-inf"))
    tokens = kept_count(token_keep, slots - start)
    # A window that begins within a page spans one page more than its keys would fill.
    return top_ranked(scores, torch.where(tokens >= slots - start, pages, pages_for(tokens, rule)))


def pages_to_read(token_keep: torch.Tensor | None, count: torch.Tensor, rule: SelectionRule) -> torch.Tensor:
    """How many pages [`choose_pages`] wants of rows whose first key begins a page, `(rows,)`.

    Args:
        token_keep (`torch.Tensor` of shape `(rows,)`, *optional*): Fraction of the keys to read; all by default.
        count (`torch.Tensor` of shape `(rows,)`): Keys of every row.
        rule ([`SelectionRule`]): Page size.
    """
    return pages_for(count if token_keep is None else kept_count(token_keep, count), rule)


def page_mask(
    scores: torch.Tensor, token_keep: torch.Tensor, count: torch.Tensor | int, rule: SelectionRule
) -> torch.Tensor:
    """The choice of [`choose_pages`] as a mask `(rows, H, pages)`, for rows whose first key begins a page.

    Args:
        scores (`torch.Tensor` of shape `(rows, kv_heads, group, pages)`): From [`page_scores`], -inf for pages that a
            row does not see.
        token_keep (`torch.Tensor` of shape `(rows,)`): Fraction of the keys to read.
        count (`int` or `torch.Tensor` of shape `(rows,)`): Keys that a row sees.
        rule ([`SelectionRule`]): Page size, and per query head or per group.
    """
    return largest(share_scores(scores, rule), pages_for(kept_count(token_keep, count), rule))


def pages_for(tokens: torch.Tensor, rule: SelectionRule) -> torch.Tensor:
    """How many pages hold so many keys, `(rows,)`."""
    return torch.div(tokens + (rule.page_size - 1), rule.page_size, rounding_mode="floor")
