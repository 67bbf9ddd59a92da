# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Contexts to decode from: prompts that a model has processed, or caches filled with random keys and values.

A context keeps at most one cache. Every run gets its own copy of the keys and values, in a cache of the base's kind or
of ours.

A random context begins with `REAL_TOKENS` tokens that the model has processed. The keys and values after them are
random: every channel of every head has the mean and standard deviation that it has over those tokens. `PERIOD` tokens
are drawn and repeated, with another offset for each row. Since `PERIOD` is a prime, pages are equal only every
`PERIOD` pages. The hidden state before the next token is that of the last processed token. The page index is made at
the first sparse step, as after any prompt.
"""

import copy
from collections.abc import Iterator

import torch
from transformers import DynamicCache

from sol_hf import SOLForCausalLM
from sol_hf.cache.paged_layer import PagedLayer
from sol_hf.cache.sol_cache import SOLCache


REAL_TOKENS = 64
PERIOD = 1021
"""Tokens of a random context that are drawn, a prime."""
SPARE_TOKENS = 8
"""Additional capacity of a random context, beyond the tokens that a run decodes."""


class UnfitBaseError(ValueError):
    """A base cannot be measured with these options; the message gives the reason."""


class Prompt:
    """A context that was processed once: all tokens of `ids` but the last.

    Args:
        model (`SOLForCausalLM`): Processes the prompt.
        context (`int`): Tokens of a row.
        rows (`int`): Texts.
    """

    def __init__(self, model: SOLForCausalLM, context: int, rows: int):
        self.config = model.base.config
        seeded = torch.Generator().manual_seed(0)
        self.ids = torch.randint(model.config.base_vocab_size, (rows, context), generator=seeded).to(model.base.device)
        self.cache, self.dynamic = model.new_cache(), None
        tokens = self.processed_ids
        with torch.no_grad():
            model(tokens, past_key_values=self.cache, logits_to_keep=1)
            if not self.cache.can_stagger:  # the base keeps other keys of sliding layers than we do
                self.dynamic = model.base(tokens, use_cache=True, logits_to_keep=1).past_key_values

    @property
    def processed_ids(self) -> torch.Tensor:
        """The tokens that the model processes."""
        return self.ids[:, :-1]

    @property
    def cache_bytes(self) -> tuple[int, int]:
        """Bytes of keys, and of values."""
        layers = [layer for layer in self.cache.layers if layer.is_initialized]
        return sum(layer.keys.nbytes for layer in layers), sum(layer.values.nbytes for layer in layers)

    def layers(self) -> Iterator[PagedLayer]:
        """Layers with the keys and values of the context, to be read only."""
        yield from self.cache.layers

    def for_base(self) -> DynamicCache:
        """A cache of the base's kind that a run may write to."""
        if self.dynamic is not None:
            return copy.deepcopy(self.dynamic)
        dynamic = DynamicCache(config=self.config)
        for index, layer in enumerate(self.layers()):
            dynamic.update(layer.keys, layer.values, index)  # copies them
        return dynamic

    def for_sol(self) -> SOLCache:
        """A cache of our kind that a run may write to."""
        return copy.deepcopy(self.cache)


class RandomPrompt(Prompt):
    """A context whose keys and values are random after the first `REAL_TOKENS` tokens; they are drawn for every run.

    Args:
        model (`SOLForCausalLM`): Processes the first tokens.
        context (`int`): Tokens of a row.
        rows (`int`): Texts.
        new_tokens (`int`): Tokens that will be decoded.

    Raises:
        UnfitBaseError: for a base with layers that do not hold all keys.
    """

    def __init__(self, model: SOLForCausalLM, context: int, rows: int, new_tokens: int):
        if not model.new_cache().can_stagger:
            raise UnfitBaseError("random keys need a base whose layers all have full attention: use --fill prompt")
        super().__init__(model, context, rows)
        self.room = context + new_tokens + SPARE_TOKENS
        seeded = torch.Generator(model.base.device).manual_seed(1)
        self.drawn = [tuple(_draw(x, seeded) for x in (layer.keys, layer.values)) for layer in self.cache.layers]

    @property
    def processed_ids(self) -> torch.Tensor:
        """The tokens that the model processes."""
        return self.ids[:, : min(REAL_TOKENS, self.ids.shape[1] - 1)]

    @property
    def cache_bytes(self) -> tuple[int, int]:
        """Bytes of keys, and of values."""
        keys, values = super().cache_bytes
        wanted, processed = self.ids.shape[1] - 1, self.processed_ids.shape[1]
        return keys * wanted // processed, values * wanted // processed

    def layers(self) -> Iterator[PagedLayer]:
        """Layers with the keys and values of the context, made as they are asked for."""
        rows, context = self.ids.shape
        for processed, drawn in zip(self.cache.layers, self.drawn, strict=True):
            layer = copy.deepcopy(processed)
            layer.reserve(self.room)
            # Rows begin at different places, so that they have different pages.
            keys, values = (torch.stack([x.roll(-row * (PERIOD // rows), 1) for row in range(rows)]) for x in drawn)
            while (missing := context - 1 - layer.length) > 0:
                layer.update(keys[:, :, :missing], values[:, :, :missing])
            yield layer

    def for_sol(self) -> SOLCache:
        """A cache of our kind that a run may write to."""
        cache = copy.deepcopy(self.cache)
        cache.layers = list(self.layers())
        cache.processed = cache.get_seq_length()
        return cache


def _draw(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Tokens `(heads, PERIOD, dim)` with mean and deviation of the channels of `x` `(rows, heads, tokens, dim)`."""
    heads, dim = x.shape[1], x.shape[3]
    deviation, mean = torch.std_mean(x.float(), dim=(0, 2), correction=0)
    noise = torch.randn(heads, PERIOD, dim, generator=generator, device=x.device)
    return (mean[:, None] + deviation[:, None] * noise).to(x.dtype)
