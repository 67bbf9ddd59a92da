# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The criterion `relevancy`: keys with the highest exact `q . k`."""

import dataclasses
import math
from typing import ClassVar

import torch

from ..candidates import Candidates
from ..channels import kept_count
from ..criterion import ROUNDING, Criterion, SelectionCost, register_criterion
from ..ranking import share_scores, top_ranked
from ..refresh_gain import RefreshGain
from ..rule import Selection, SelectionRule


GAIN = RefreshGain(((0.1, 0.017), (0.2, 0.011), (1.0, 0.0)))
"""Measured, see docs/performance.md."""


class Relevancy(Criterion):
    """Keeps the sink, the recent window, and of the other tokens those with the highest exact `q . k`.

    `token_keep` is a fraction of the other tokens. All keys are read to select, and only the selected values.
    """

    prefix_to_stagger: ClassVar[int | None] = 0

    def select(self, candidates: Candidates, token_keep: torch.Tensor, rule: SelectionRule) -> Selection:
        scores, place, count = candidates.exact_scores(), candidates.places, candidates.counts
        valid = place >= 0
        always = valid & ((place < rule.sink_tokens) | (place >= (count - rule.window_tokens - 2)[:, None]))
        others = count - always.sum(dim=-1)
        wanted = always.sum(dim=-1) + torch.where(others > 0, kept_count(token_keep, others), 0)
        scores = share_scores(scores, rule)
        scores = scores.masked_fill(always[:, None], float("inf")).masked_fill(~valid[:, None], float("-inf"))
        order, in_use = top_ranked(scores, wanted)
        return Selection(order - candidates.page_origin[:, None, None], in_use)

    def keys_read(self, rule: SelectionRule, token_keep: float, keys: int) -> int:
        always = rule.sink_tokens + rule.window_tokens + 2
        return min(keys, always + math.ceil(token_keep * max(keys - always, 0) - ROUNDING))

    def refresh_gain(self, rule: SelectionRule) -> RefreshGain:
        return GAIN

    def cost(self, rule: SelectionRule, token_keep: float, keys: int, group: int) -> SelectionCost:
        """See [`Criterion`]. All keys are read and scored; of the values, only the selected ones are read."""
        cost = super().cost(rule, token_keep, keys, group)
        if token_keep >= 1:
            return cost
        return dataclasses.replace(cost, moved=(keys + cost.moved) / 2, scored=keys - cost.attended)


register_criterion("relevancy", Relevancy())
