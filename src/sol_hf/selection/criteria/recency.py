# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The criterion `recency`: the first and the most recent keys."""

import math
from typing import ClassVar

import torch

from ..candidates import Candidates
from ..channels import kept_count
from ..criterion import ROUNDING, Criterion, register_criterion
from ..refresh_gain import RefreshGain
from ..rule import Selection, SelectionRule


GAIN = RefreshGain(((0.2, 0.007), (1.0, 0.0)))
"""Measured, see docs/performance.md."""


class Recency(Criterion):
    """Keeps the sink and the most recent tokens, the same for all heads.

    `token_keep` is a fraction of the tokens outside of sink and window.
    """

    heads_may_differ: ClassVar[bool] = False
    prefix_to_stagger: ClassVar[int | None] = 0

    def select(self, candidates: Candidates, token_keep: torch.Tensor, rule: SelectionRule) -> Selection:
        count, device = candidates.counts, token_keep.device
        always = rule.sink_tokens + rule.window_tokens + 1
        middle = count - always
        extra = torch.where(middle > 0, kept_count(token_keep, middle), 0)
        kept = torch.minimum(count, always + extra)
        most = int(kept.max()) if device.type == "cpu" else candidates.slots
        place = torch.arange(most, device=device)
        in_row = torch.where(place < rule.sink_tokens, place, place + (count - kept)[:, None])
        ranks = candidates.slots_at(in_row) - candidates.page_origin[:, None]
        return Selection(ranks[:, None], (place < kept[:, None])[:, None])

    def keys_read(self, rule: SelectionRule, token_keep: float, keys: int) -> int:
        always = rule.sink_tokens + rule.window_tokens + 1
        return min(keys, always + math.ceil(token_keep * max(keys - always, 0) - ROUNDING))

    def refresh_gain(self, rule: SelectionRule) -> RefreshGain:
        return GAIN


register_criterion("recency", Recency())
