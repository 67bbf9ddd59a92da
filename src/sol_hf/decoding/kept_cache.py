# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Bases that drop the cache of a running generation.

The code of a base prepares the arguments of every forward, and may leave the cache out, to have the whole text
computed again. Phi-3 does so when the text outgrows its short rotary factors: all keys change. Under a budget the text
is then computed again into the call's own [`SOLCache`], by one dense forward. Ledger and trace continue.
"""

from typing import Any

import torch
from transformers import PreTrainedModel

from ..errors import UnsupportedAxisError
from .session import DecodingSession


def keep_cache(base: PreTrainedModel, prepared: dict[str, Any]) -> dict[str, Any]:
    """The prepared arguments of a forward, with the cache of the running call if the base has left it out.

    Args:
        base (`PreTrainedModel`): The base that has prepared them.
        prepared (`dict[str, Any]`): Arguments of its next forward.

    Raises:
        UnsupportedAxisError: if the base uses another cache, or does not pass on the text that was in the cache.
    """
    session = DecodingSession.current()
    if session is None or session.controls is None or prepared.get("past_key_values") is session.cache:
        return prepared
    name, cached = type(base).__name__, session.cache.get_seq_length()
    other = prepared.get("past_key_values")
    if other is not None:
        raise UnsupportedAxisError(
            f"{name} exchanges the cache of a generation for a {type(other).__name__} of its own, so it cannot run "
            "under a budget: leave the budget out."
        )
    tokens = prepared.get("inputs_embeds") if prepared.get("input_ids") is None else prepared["input_ids"]
    if tokens is None or tokens.shape[1] <= cached or _begins_late(prepared.get("position_ids")):
        raise UnsupportedAxisError(
            f"{name} drops the cache of {cached} tokens here and has to compute the whole text again, but was given "
            "its last part only: pass all token ids of the text to `generate`."
        )
    if cached:
        session.cache.forget_tokens()
    session.is_recomputing = _changes_within(base, tokens, cached)
    return prepared | {"past_key_values": session.cache}


def _begins_late(positions: torch.Tensor | None) -> bool:
    """Whether the first token is not the first of its text; it has position 0, padding may have position 1."""
    return positions is not None and bool(positions[..., 0].min() > 1)


def _changes_within(base: PreTrainedModel, tokens: torch.Tensor, cached: int) -> bool:
    """Whether the last token may be computed in another way than those before it, if it were a step of its own."""
    switch = getattr(base.config, "original_max_position_embeddings", None)
    return cached > 0 or switch is None or tokens.shape[1] - 1 <= switch
