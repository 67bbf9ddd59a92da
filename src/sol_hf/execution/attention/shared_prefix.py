# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Attention of many rollouts over a prefix that they share."""

import torch

from ...cache.shared_prefix import SharedPrefixLayer
from ...selection.quest import page_mask
from ...selection.ranking import group_queries
from ...selection.recency import select_recency
from ...selection.relevancy import select_relevancy
from ...selection.rule import SelectionRule


def attend_shared_prefix(
    layer: SharedPrefixLayer,
    rule: SelectionRule,
    token_keep: torch.Tensor | None,
    query: torch.Tensor,
    scaling: float | None,
) -> torch.Tensor:
    """Attention of one new token per row over shared prefix and own suffix.

    Args:
        layer ([`SharedPrefixLayer`]): With the new token's key and value already in it.
        rule ([`SelectionRule`]): How keys are selected.
        token_keep (`torch.Tensor` of shape `(rows,)`, *optional*): Fraction of the keys to read; all by default.
        query (`torch.Tensor` of shape `(rows, heads, 1, head_dim)`): Query of the new token.
        scaling (`float`, *optional*): Scale of the scores; `1 / sqrt(head_dim)` by default.

    Returns:
        `torch.Tensor` of shape `(rows, 1, heads, head_dim)`.
    """
    rows, heads, _, dim = query.shape
    grouped = group_queries(query, layer.prefix.keys.shape[1])
    folded = layer.by_block(grouped)
    shared = layer.prefix.length
    own = layer.by_block(grouped @ layer.keys.transpose(2, 3))
    scores = torch.cat([folded @ layer.prefix.keys.transpose(2, 3), own], dim=-1)
    if token_keep is not None:
        _mask_out(layer, rule, token_keep.to(query.device), grouped, scores)
    if layer.prefix.visible_pages is not None:
        hidden = _hidden(layer.prefix.visible_pages * layer.page_size, shared)
        scores[..., :shared].masked_fill_(hidden.repeat_interleave(grouped.shape[2], dim=0), float("-inf"))
    scale = scaling if scaling is not None else dim**-0.5
    weights = scores.mul_(scale).softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    output = layer.by_row(weights[..., :shared] @ layer.prefix.values)
    output = output + layer.by_row(weights[..., shared:]) @ layer.values
    return output.reshape(rows, 1, heads, output.shape[-1])


def _hidden(visible: torch.Tensor, total: int) -> torch.Tensor:
    """`(repeats, total)`: which of `total` places lie behind the first `visible` `(repeats,)`."""
    return torch.arange(total, device=visible.device) >= visible[:, None]


def _mask_out(
    layer: SharedPrefixLayer,
    rule: SelectionRule,
    token_keep: torch.Tensor,
    grouped: torch.Tensor,
    scores: torch.Tensor,
) -> None:
    """Set `scores` `(blocks, kv_heads, repeats * group, slots)` to -inf where a query head does not read a key."""
    slots, shared, size = scores.shape[-1], layer.prefix.length, rule.page_size
    if rule.criterion != "quest":
        assert layer.prefix.visible_pages is None, "only `quest` is asked for rows that see different pages"
        keep = _per_query(_kept_keys(layer, rule, token_keep, scores), grouped)
        scores.masked_fill_(~layer.by_block(keep), -torch.inf)
        return
    keep = layer.by_block(_per_query(_kept_pages(layer, rule, token_keep, grouped, slots), grouped))
    # Adding 0 or -inf page by page is cheaper than a mask over all keys.
    bias = torch.zeros_like(keep, dtype=scores.dtype).masked_fill_(~keep, -torch.inf)
    whole = shared // size
    scores[..., :shared].unflatten(-1, (whole, size)).add_(bias[..., :whole, None])
    scores[..., shared:].add_(bias[..., whole:].repeat_interleave(size, dim=-1)[..., : slots - shared])


def _per_query(mask: torch.Tensor, grouped: torch.Tensor) -> torch.Tensor:
    """A mask `(rows, H, n)` that several query heads may share, as `(rows, kv_heads, group, n)`."""
    rows, kv_heads, group, _ = grouped.shape
    if mask.shape[1] == kv_heads * group:
        return mask.view(rows, kv_heads, group, -1)
    return mask[:, :, None].expand(rows, kv_heads, group, -1)


def _kept_keys(
    layer: SharedPrefixLayer, rule: SelectionRule, token_keep: torch.Tensor, scores: torch.Tensor
) -> torch.Tensor:
    """Which keys every head reads under `relevancy` or `recency`, `(rows, H, slots)`."""
    slots = scores.shape[-1]
    zero = torch.zeros(len(token_keep), dtype=torch.long, device=scores.device)
    if rule.criterion == "relevancy":
        selection = select_relevancy(layer.by_row(scores), token_keep, zero, zero, rule)
    else:
        selection = select_recency(token_keep, zero, zero, slots, rule)
    # Places that are not in use may repeat an index that is: they go to one column more, which is cut off.
    index = torch.where(selection.in_use, selection.ranks, slots)
    keep = torch.zeros(*index.shape[:2], slots + 1, dtype=torch.bool, device=scores.device)
    return keep.scatter_(2, index, True)[..., :slots]


def _kept_pages(
    layer: SharedPrefixLayer, rule: SelectionRule, token_keep: torch.Tensor, grouped: torch.Tensor, slots: int
) -> torch.Tensor:
    """Which pages of prefix and suffix every head reads, `(rows, H, pages)`.

    The scores are those of [`page_scores`], as one product of the queries' positive and negative parts with the pages'
    maxima and minima.
    """
    rows, visible = len(grouped), layer.prefix.visible_pages
    signed = torch.cat([grouped.clamp(min=0), grouped.clamp(max=0)], dim=-1)
    own = torch.cat(layer.page_index(torch.zeros(rows, dtype=torch.long, device=grouped.device), (0, 0)), dim=-1)
    of_prefix = layer.by_row(layer.by_block(signed) @ layer.prefix.bounds.transpose(2, 3))
    count: torch.Tensor | int = slots
    if visible is not None:
        hidden = _hidden(visible, of_prefix.shape[-1]).repeat(rows // layer.repeats, 1)
        of_prefix = of_prefix.masked_fill(hidden[:, None, None], float("-inf"))
        count = slots - hidden.sum(dim=1) * rule.page_size
    return page_mask(torch.cat([of_prefix, signed @ own.transpose(2, 3)], dim=-1), token_keep, count, rule)
