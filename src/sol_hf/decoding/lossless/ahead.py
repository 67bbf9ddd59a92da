# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Tokens ahead of the loop: processed densely already, with their logits, but not yet part of the text.

The cache holds what the loop has processed and nothing else, also between two forwards: a callback that copies it, or
an exception, finds it as after any other step. The keys and values ahead are kept beside it.

    cache    | keys of the text so far |  ahead: keys of drafted tokens  |
                                       ^ one more with each token that the loop takes as drafted
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ...cache.paged_layer import PagedLayer
from ...cache.sol_cache import SOLCache
from ...cache.token_arguments import TokenArguments
from ..forward_inputs import ForwardInputs


@dataclass
class Ahead:
    """Drafted tokens after a check.

    Args:
        tokens (`torch.LongTensor` of shape `(rows, drafted)`): The tokens.
        gaps (`list[list[float]]`): The gap of every token in every row, see [`Proposal`].
        logits (`torch.Tensor` of shape `(rows, 1 + drafted, vocab_size)`): Dense logits after the token before them,
            and after each.
        hidden (`torch.Tensor` of shape `(rows, 1 + drafted, hidden_size)`): The LM head's inputs.
        along (`TokenArguments`): The arguments per token with which they were processed.
        seconds (`float`): What draft and check took.
        tails (`list`): Keys and values of every layer; `None` for layers that have them in their storage.
        used (`int`): How many the loop has taken.
    """

    tokens: torch.Tensor
    gaps: list[list[float]]
    logits: torch.Tensor
    hidden: torch.Tensor
    along: TokenArguments
    seconds: float = 0.0
    tails: list[tuple[torch.Tensor, torch.Tensor] | None] = field(default_factory=list)
    used: int = 0

    @property
    def drafted(self) -> int:
        """Number of drafted tokens."""
        return self.tokens.shape[1]

    def take_from(self, cache: SOLCache) -> None:
        """Take the keys and values of the drafted tokens, the last in the cache, out of it."""
        number = self.drafted
        self.tails = [None if isinstance(layer, PagedLayer) else _last(layer, number) for layer in cache.layers]
        if number:
            cache.drop_tokens(number)

    def follows(self, inputs: ForwardInputs) -> torch.Tensor | None:
        """Which rows `(rows,)` take the next drafted token; `None` if the forward is of another kind altogether."""
        place = self.used
        if place >= self.drafted or inputs.tokens.shape != (len(self.tokens), 1) or inputs.asks_for_more:
            return None
        if inputs.tokens.is_floating_point() or not _are_same(inputs.along, self.along, place + 1):
            return None
        if inputs.attention_mask is not None and not bool(inputs.attention_mask[:, -1].all()):
            return None
        return inputs.tokens[:, 0] == self.tokens[:, place]

    def give_next(self, cache: SOLCache) -> tuple[torch.Tensor, torch.Tensor]:
        """Put the keys and values of the next token into the cache.

        Returns:
            Logits `(rows, 1, vocab_size)` and the LM head's input `(rows, hidden_size)` after it.
        """
        place = self.used
        for layer, tail in zip(cache.layers, self.tails, strict=True):
            if tail is None:
                layer.give_back(1)
            else:
                layer.update(tail[0][:, :, place : place + 1], tail[1][:, :, place : place + 1])
        cache.processed += 1
        self.used += 1
        return self.logits[:, self.used : self.used + 1], self.hidden[:, self.used]


def _last(layer: Any, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    begin = layer.keys.shape[2] - number
    return layer.keys[:, :, begin:], layer.values[:, :, begin:]


def _are_same(given: TokenArguments, expected: TokenArguments, place: int) -> bool:
    """Whether arguments of one token are those that were expected for the token at `place`."""
    if given.keys() != expected.keys():
        return False
    pairs = ((given[name].value, expected[name].cut(place, place + 1).value) for name in given)
    return all(torch.equal(one.to(other.device), other) for one, other in pairs)


def ahead_of(inputs: ForwardInputs, token: torch.Tensor, steps: int) -> ForwardInputs:
    """The inputs of a token `(rows, 1)` that the loop may take `steps` tokens after that of `inputs`."""
    mask = inputs.attention_mask
    if mask is not None:
        mask = torch.cat([mask, mask.new_ones(len(mask), steps)], dim=1)
    along = {name: replace(argument, value=argument.value + steps) for name, argument in inputs.along.items()}
    return ForwardInputs(token, mask, along, further=inputs.further)
