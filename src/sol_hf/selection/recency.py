# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The criterion `recency`: the first and the latest tokens."""

import torch

from .channels import kept_count
from .rule import Selection, SelectionRule


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
