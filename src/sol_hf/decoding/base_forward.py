# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Forwards of the base over a cache."""

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from ..cache.sol_cache import SOLCache
from ..errors import UnsupportedAxisError
from ..execution.plan import RefreshPlan, active_forward
from .base_arguments import accepted_arguments
from .compiled_step import compiled_refresh
from .forward_inputs import ForwardInputs
from .positions import default_positions, note_shift
from .session import DecodingSession


def base_forward(
    base: PreTrainedModel, inputs: ForwardInputs, cache: SOLCache, logits_to_keep: int = 1
) -> CausalLMOutputWithPast:
    """Run the base on tokens that follow those in the cache.

    Positions that are not given are those that the base itself would take, unless the cache says otherwise.
    """
    begin, length = cache.get_seq_length(), inputs.length
    arguments = inputs.arguments()
    if inputs.attention_mask is not None:
        arguments["attention_mask"] = inputs.attention_mask[:, : begin + length]
    accepted = accepted_arguments(base)
    if "position_ids" in accepted and "position_ids" not in arguments:
        positions = default_positions(base, inputs, cache)
        if positions is not None:
            arguments["position_ids"] = positions
    if "logits_to_keep" in accepted:
        arguments["logits_to_keep"] = logits_to_keep
    arguments |= dict(past_key_values=cache, use_cache=True, return_dict=True)
    try:
        output = base(**arguments)
    except ValueError as error:
        if not begin or not inputs.with_prompt:
            raise
        raise ValueError(
            f"{str(error).rstrip('.')}. The cache holds {begin} tokens with their images and sounds: pass only those "
            "of the new tokens."
        ) from error
    if cache.get_seq_length() != begin + length:
        raise UnsupportedAxisError(
            f"{type(base).__name__} cannot run over the cache of a call under a budget: after {begin + length} tokens "
            f"it holds the keys of {cache.get_seq_length()}. Leave the budget out."
        )
    cache.processed = begin + length
    note_shift(base, inputs, cache)
    if logits_to_keep and output.logits.shape[1] > logits_to_keep:
        output.logits = output.logits[:, -logits_to_keep:]
    return output


def dense_forward(
    session: DecodingSession, inputs: ForwardInputs, logits_to_keep: int = 1, refresh: RefreshPlan | None = None
) -> CausalLMOutputWithPast:
    """Process tokens densely, as a KV refresh if `refresh` is given, and begin a new episode after them."""
    output, hidden = processed_densely(session, inputs, logits_to_keep, refresh)
    session.cache.end_episode(hidden[:, -1], inputs.tokens[:, -1:], logits_digest(session, output))
    return output


def processed_densely(
    session: DecodingSession, inputs: ForwardInputs, logits_to_keep: int, refresh: RefreshPlan | None
) -> tuple[CausalLMOutputWithPast, torch.Tensor]:
    """What the base returns for tokens, and the LM head's inputs `(rows, tokens, hidden_size)`.

    A KV refresh runs as one compiled program where that is possible.
    """
    compiled = None if refresh is None else compiled_refresh(session, inputs, refresh, logits_to_keep)
    if compiled is not None:
        return compiled
    with active_forward(refresh=refresh) as context:
        output = base_forward(session.base, inputs, session.cache, logits_to_keep)
    return output, context.head_inputs()


def logits_digest(session: DecodingSession, output: CausalLMOutputWithPast) -> torch.Tensor | None:
    """What the controller keeps of the logits of the last token, `None` if it does not use them."""
    if not session.needs_logits:
        return None
    return session.require_controls().controller.digest_logits(output.logits[:, -1])


def embed(base: PreTrainedModel, token: torch.Tensor) -> torch.Tensor:
    """Input embeddings of ids; embeddings are returned unchanged."""
    return token if token.is_floating_point() else base.get_input_embeddings()(token)
