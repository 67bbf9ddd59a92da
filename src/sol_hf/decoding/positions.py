# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Positions of tokens that come without any, and what follows from those of images.

Some bases give an image fewer positions than it has tokens. All later tokens then stand earlier by a shift, which such
a base remembers on itself (`rope_deltas`), and takes for whatever text comes next. Under a budget every cache has its
own: it is part of `SOLCache.position_offset`.
"""

import threading
from typing import Any

import torch
from transformers import PreTrainedModel

from ..cache.sol_cache import SOLCache
from .base_arguments import counts_cached_tokens
from .forward_inputs import ForwardInputs


def default_positions(base: PreTrainedModel, inputs: ForwardInputs, cache: SOLCache) -> torch.Tensor | None:
    """Positions `(rows, length)` of tokens without any, `None` if they are those that the base itself takes."""
    begin, device, offset = cache.get_seq_length(), inputs.tokens.device, cache.position_offset
    if counts_images(base, inputs):
        return None
    if offset is None and begin and (_remembers_shift(base) is not None or not counts_cached_tokens(base)):
        offset = torch.zeros(len(inputs.tokens), dtype=torch.long, device=device)
    if offset is None:
        return None
    slots = torch.arange(begin, begin + inputs.length, device=device)
    return (slots - offset[:, None]).clamp(min=0)


def counts_images(base: PreTrainedModel, inputs: ForwardInputs) -> bool:
    """Whether only the base knows the positions of some tokens, which are those of an image."""
    return bool(inputs.with_prompt) and _remembers_shift(base) is not None


def _remembers_shift(base: PreTrainedModel) -> torch.nn.Module | None:
    """The module that keeps the shift of positions after the images of the last text, if the base has such."""
    return next((module for module in (base, *base.children()) if hasattr(module, "rope_deltas")), None)


def note_shift(base: PreTrainedModel, inputs: ForwardInputs, cache: SOLCache) -> None:
    """After a forward with images, keep in the cache how much earlier the tokens after them stand.

    Args:
        base (`PreTrainedModel`): The base that has processed them.
        inputs ([`ForwardInputs`]): Of the forward.
        cache ([`SOLCache`]): That of the forward.
    """
    module = _remembers_shift(base)
    if module is None or not inputs.with_prompt:
        return
    padding = _padding(cache)
    given = inputs.along.get("position_ids")
    if given is None:
        remembered: Any = module.rope_deltas
        shift = 0 if remembered is None else remembered[:, 0]
    elif given.value.dim() == 3:  # (dimensions, rows, length), the last three are those of images
        last = given.value[-3:].amax(dim=(0, 2)).expand(cache.rows)
        shift = last + 1 + padding - cache.get_seq_length()
    else:
        return
    cache.position_offset = padding - shift


def positions_in_loop(base: PreTrainedModel, prompt: torch.Tensor, arguments: dict[str, Any]) -> torch.Tensor:
    """The positions that a base prepares for a whole text, with the shift of the text in the cache.

    Args:
        base (`PreTrainedModel`): The base.
        prompt (`torch.Tensor`): Ids or embeddings of the text.
        arguments (`dict[str, Any]`): Those that transformers' loop has prepared.
    """
    cache, module = arguments.get("past_key_values"), _remembers_shift(base)
    with _PREPARING:
        if module is not None and isinstance(cache, SOLCache) and cache.get_seq_length():
            padding, offset = _padding(cache), cache.position_offset
            shift = torch.zeros_like(padding) if offset is None else padding - offset
            module.rope_deltas = shift[:: max(cache.rows // len(prompt), 1), None]  # the loop repeats rows for beams
        return base._prepare_position_ids_for_generation(prompt, arguments)


def _padding(cache: SOLCache) -> torch.Tensor:
    device = cache.ledger.total_counts.device
    return torch.zeros(cache.rows, dtype=torch.long, device=device) if cache.padding is None else cache.padding


_PREPARING = threading.Lock()
"""Held while a base reads and writes the shift that it remembers."""
