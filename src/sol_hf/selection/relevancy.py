# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The criterion `relevancy`: exact scores."""

import torch

from .channels import kept_count
from .ranking import share_scores, top_ranked
from .rule import Selection, SelectionRule


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
    scores = share_scores(scores, rule)
    scores = scores.masked_fill(forced[:, None], float("inf")).masked_fill(~valid[:, None], float("-inf"))
    order, in_use = top_ranked(scores, wanted)
    return Selection(order - first[:, None, None], in_use)
