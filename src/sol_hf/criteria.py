# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Which cached keys a decode step reads: `quest`, `relevancy` and `recency` as pure functions.

Every criterion answers with a [`Selection`]: for each head, the *ranks* of the keys to read. Rank 0 is the row's
first real token, so a left-padded row selects the very keys that it would select alone:

    slot      0    1    2    3    4    5    6          rows are left-padded
    row 0     pad  pad  a    b    c    d    e          rank = slot - 2, five keys
    row 1     p    q    r    s    t    u    v          rank = slot,     seven keys

`H` is the number of query heads, or of key-value heads where one choice serves a whole group.
"""

from dataclasses import dataclass

import torch

from .activations import kept_count, largest


CRITERIA = ("quest", "relevancy", "recency")
PAGE_SELECTIONS = ("head", "group")


@dataclass(frozen=True)
class SelectionRule:
    """The settings of a selection that do not change from step to step.

    Args:
        criterion (`str`): `"quest"`, `"relevancy"` or `"recency"`.
        page_size (`int`): Keys in a page (`quest`).
        page_selection (`str`): `"head"` chooses per query head; `"group"` once per key-value head, by the sum of the
            scores of its query heads, so that the bytes read are really `token_keep` of the cache.
        sink_tokens (`int`): First tokens that `relevancy` and `recency` always keep.
        window_tokens (`int`): Width of the recent window that they always keep.
    """

    criterion: str = "quest"
    page_size: int = 8
    page_selection: str = "head"
    sink_tokens: int = 4
    window_tokens: int = 2

    def is_controllable(self, count: torch.Tensor) -> torch.Tensor:
        """Whether a step that sees `count` keys (itself included) is under control, of the shape of `count`."""
        return count > self.sink_tokens + self.window_tokens + 1

    def page_fill(self, count: torch.Tensor) -> torch.Tensor:
        """Share of its page that is filled by a step's own token and those before it, of the shape of `count`.

        The fuller the page, the more it resembles the others in the bound that ranks it: an early token of a page is
        at greater risk of not being read, by itself and by those after it.
        """
        return ((count - 1) % self.page_size + 1) / self.page_size


@dataclass(frozen=True)
class Selection:
    """Keys to read, of shape `(rows, H, m)`: their ranks, and which of the `m` places are in use.

    A rank out of `[first valid, count)` is never in use; `H` is 1 where all heads read the same keys.
    """

    ranks: torch.Tensor
    in_use: torch.Tensor


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


def group_queries(query: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """Query heads of one token by key-value head: `(rows, heads, 1, dim)` to `(rows, kv_heads, group, dim)`."""
    rows, heads, _, dim = query.shape
    return query.reshape(rows, kv_heads, heads // kv_heads, dim)


def _shared(scores: torch.Tensor, rule: SelectionRule) -> torch.Tensor:
    """`(rows, kv_heads, group, n)` to `(rows, H, n)`, summed over the group where one choice serves it."""
    return scores.sum(dim=2) if rule.page_selection == "group" else scores.flatten(1, 2)


def _top_ranked(scores: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of the `wanted` highest scores per row, and which of them are wanted.

    On the CPU there are as many as the row that wants most; elsewhere, where looking would stall the device, all.
    """
    total = scores.shape[-1]
    most = min(int(wanted.max()), total) if scores.device.type == "cpu" else total
    order = scores.topk(most, dim=-1).indices
    place = torch.arange(most, device=scores.device)
    return order, (place < wanted[:, None, None]).expand_as(order)


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
    scores = _shared(scores, rule).masked_fill(~has_keys[:, None], float("-inf"))
    tokens = kept_count(token_keep, slots - start)
    # A window that begins within a page spans one page more than its keys would fill.
    return _top_ranked(scores, torch.where(tokens >= slots - start, pages, _pages_of(tokens, rule)))


def pages_to_read(token_keep: torch.Tensor | None, count: torch.Tensor, rule: SelectionRule) -> torch.Tensor:
    """How many pages [`choose_pages`] wants of rows whose first key begins a page, `(rows,)`.

    Args:
        token_keep (`torch.Tensor` of shape `(rows,)`, *optional*): Fraction of the keys to read; all by default.
        count (`torch.Tensor` of shape `(rows,)`): Keys of every row.
        rule ([`SelectionRule`]): Page size.
    """
    return _pages_of(count if token_keep is None else kept_count(token_keep, count), rule)


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
    return largest(_shared(scores, rule), _pages_of(kept_count(token_keep, count), rule))


def _pages_of(tokens: torch.Tensor, rule: SelectionRule) -> torch.Tensor:
    """How many pages hold so many keys, `(rows,)`."""
    return torch.div(tokens + (rule.page_size - 1), rule.page_size, rounding_mode="floor")


def select_relevancy(
    scores: torch.Tensor,
    token_keep: torch.Tensor,
    first: torch.Tensor,
    start: torch.Tensor,
    rule: SelectionRule,
) -> Selection:
    """Keep the sink, the recent window, and of the other tokens those with the highest exact `q . k`.

    Args:
        scores (`torch.Tensor` of shape `(rows, kv_heads, group, slots)`): Exact `q . k`.
        token_keep (`torch.Tensor` of shape `(rows,)`): Fraction of the other tokens to keep.
        first (`torch.Tensor` of shape `(rows,)`): As in [`page_bounds`].
        start (`torch.Tensor` of shape `(rows,)`): As in [`page_bounds`].
        rule ([`SelectionRule`]): Sink and window.
    """
    slots = scores.shape[-1]
    slot = torch.arange(slots, device=scores.device)
    order_in_row = slot - start[:, None]
    count = slots - start
    valid = order_in_row >= 0
    forced = valid & ((order_in_row < rule.sink_tokens) | (order_in_row >= (count - rule.window_tokens - 2)[:, None]))
    others = count - forced.sum(dim=-1)
    wanted = forced.sum(dim=-1) + torch.where(others > 0, kept_count(token_keep, others), 0)
    scores = _shared(scores, rule)
    scores = scores.masked_fill(forced[:, None], float("inf")).masked_fill(~valid[:, None], float("-inf"))
    order, in_use = _top_ranked(scores, wanted)
    return Selection(order - first[:, None, None], in_use)


def select_recency(
    token_keep: torch.Tensor, first: torch.Tensor, start: torch.Tensor, slots: int, rule: SelectionRule
) -> Selection:
    """Keep the sink and the most recent tokens, the same for all heads.

    Args:
        token_keep (`torch.Tensor` of shape `(rows,)`): Fraction of the tokens outside of sink and window to keep.
        first (`torch.Tensor` of shape `(rows,)`): As in [`page_bounds`].
        start (`torch.Tensor` of shape `(rows,)`): As in [`page_bounds`].
        slots (`int`): Number of cached slots.
        rule ([`SelectionRule`]): Sink and window.
    """
    count = slots - start
    always = rule.sink_tokens + rule.window_tokens + 1
    middle = count - always
    extra = torch.where(middle > 0, kept_count(token_keep, middle), 0)
    kept = torch.minimum(count, always + extra)
    most = int(kept.max()) if start.device.type == "cpu" else slots
    place = torch.arange(most, device=start.device)
    in_row = torch.where(place < rule.sink_tokens, place, place + (count - kept)[:, None])
    ranks = in_row + (start - first)[:, None]
    return Selection(ranks[:, None], (place < kept[:, None])[:, None])
