# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The criterion `sketch`: single tokens, ranked by a copy of all keys in a few bits."""

import dataclasses
from typing import ClassVar

import torch

from ..candidates import Candidates
from ..channels import kept_count, largest
from ..criterion import Criterion, SelectionCost, register_criterion
from ..ranking import top_ranked
from ..refresh_gain import RefreshGain
from ..rule import Selection, SelectionRule
from ..sketch import INDEX_BITS, MOST_IN_MEAN


GAIN = RefreshGain(((0.1, 0.011), (0.2, 0.004), (1.0, 0.0)))
"""Of `selection="layer"`, by which other selections are judged as well; measured, see docs/performance.md."""


class Sketch(Criterion):
    """Reads the sink, the recent window, and of the other tokens those with the highest scores.

    `token_keep` is a fraction of all tokens: sink and window count. Scores are `q . k` with the keys in `index_bits`.
    Where query heads choose together, their scores become probabilities first (the softmax over all keys), which are
    added up: a head that needs few keys then does not outvote the others. With `selection="layer"` the key-value heads
    of a layer share their number of keys.
    """

    ranks_codes: ClassVar[bool] = True
    prefix_to_stagger: ClassVar[int | None] = MOST_IN_MEAN
    selections: ClassVar[tuple[str, ...]] = ("head", "group", "layer")

    def check(self, rule: SelectionRule) -> None:
        super().check(rule)
        if rule.index_bits not in INDEX_BITS:
            raise ValueError(f"`index_bits` must be one of {', '.join(map(str, INDEX_BITS))}, got {rule.index_bits}.")

    def select(self, candidates: Candidates, token_keep: torch.Tensor, rule: SelectionRule) -> Selection:
        scores, wanted = self._scores(candidates, token_keep, rule)
        if rule.selection != "layer":
            order, in_use = top_ranked(scores, wanted)
        else:
            order, in_use = _shared_by_heads(scores, wanted)
        return Selection(order - candidates.page_origin[:, None, None], in_use)

    def mask(self, candidates: Candidates, token_keep: torch.Tensor, rule: SelectionRule) -> torch.Tensor:
        """See [`Criterion.mask`]. Heads that choose together give a mask at once."""
        if rule.selection != "layer":
            return super().mask(candidates, token_keep, rule)
        scores, wanted = self._scores(candidates, token_keep, rule)
        return _chosen_by_heads(scores, wanted)

    def _scores(
        self, candidates: Candidates, token_keep: torch.Tensor, rule: SelectionRule
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores of all slots `(rows, H, slots)`, and how many keys `(rows,)` a head reads on average."""
        scores, place, count = candidates.coded_scores(rule.index_bits), candidates.places, candidates.counts
        valid = place >= 0
        always = valid & ((place < rule.sink_tokens) | (place >= (count - rule.recent_tokens)[:, None]))
        wanted = self.tokens_wanted(rule, token_keep, count)
        if rule.selection == "head":
            scores = scores.flatten(1, 2)
        else:
            logits = (scores * candidates.scaling).masked_fill(~valid[:, None, None], float("-inf"))
            scores = logits.softmax(dim=-1).sum(dim=2)
        scores = scores.masked_fill(always[:, None], float("inf")).masked_fill(~valid[:, None], float("-inf"))
        return scores, wanted

    def has_token_kernel(self, rule: SelectionRule) -> bool:
        return rule.index_bits == 4 and rule.selection != "head"

    def tokens_wanted(self, rule: SelectionRule, token_keep: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
        always = count.clamp(max=rule.sink_tokens + rule.recent_tokens)
        return torch.maximum(kept_count(token_keep, count), always)

    def keys_read(self, rule: SelectionRule, token_keep: float, keys: int) -> int:
        return min(keys, max(rule.sink_tokens + rule.recent_tokens, super().keys_read(rule, token_keep, keys)))

    def refresh_gain(self, rule: SelectionRule) -> RefreshGain:
        return GAIN

    def cost(self, rule: SelectionRule, token_keep: float, keys: int, group: int) -> SelectionCost:
        """See [`Criterion`]. The whole index is read and scored, and the mean of the keys read for the new code."""
        cost = super().cost(rule, token_keep, keys, group)
        if token_keep >= 1:
            return cost
        index = dict(index_bits=keys * rule.index_bits, index_values=keys, index_means=1)
        return dataclasses.replace(cost, scored=keys, **index)


def _chosen_by_heads(scores: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """A mask `(rows, kv_heads, slots)` of the best of all heads together, `wanted` a head on average."""
    return largest(scores.flatten(1), wanted * scores.shape[1]).view_as(scores)


def _shared_by_heads(scores: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Ranks `(rows, kv_heads, m)` of the best of all heads together, `wanted` a head on average, and their mask."""
    chosen, slots = _chosen_by_heads(scores, wanted), scores.shape[-1]
    number = chosen.sum(dim=-1)
    most = int(number.max()) if scores.device.type == "cpu" else slots
    order = chosen.to(torch.int8).topk(most, dim=-1).indices
    return order, torch.arange(most, device=scores.device) < number[..., None]


register_criterion("sketch", Sketch())
