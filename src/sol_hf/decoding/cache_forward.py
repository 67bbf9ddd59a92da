# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A forward of the wrapped model over a [`SOLCache`]: its checks, its parts, and the logits that are wanted."""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from transformers.modeling_outputs import CausalLMOutputWithPast

from ..execution.instrumentation import Instrumentation
from ..execution.watch import watching
from .base_arguments import accepted_arguments
from .cache_use import using
from .forward_inputs import ForwardInputs
from .session import DecodingSession
from .step import decode_forward


def forward_over_cache(
    session: DecodingSession,
    arguments: Mapping[str, Any],
    attention_mask: torch.Tensor | None,
    logits_to_keep: int | torch.Tensor = 0,
) -> CausalLMOutputWithPast:
    """Process the tokens of a forward. If it is interrupted, the cache is what it was before.

    Args:
        session ([`DecodingSession`]): The running call, or a dense continuation.
        arguments (`Mapping[str, Any]`): `input_ids` or `inputs_embeds`, and what else the base gets.
        attention_mask (`torch.Tensor` of shape `(rows, cached + length)`, *optional*): 0 marks left padding.
        logits_to_keep (`int` or `torch.Tensor`, *optional*, defaults to 0): As in the base; 0 keeps all.

    Raises:
        ValueError: for inputs that do not fit the cache or each other, before any compute.
    """
    inputs = inputs_of(session, arguments, attention_mask)
    all_logits = not (isinstance(logits_to_keep, int) and logits_to_keep == 1)
    context = watching(session.base) if session.controls is None else Instrumentation.of(session.base)
    alone = nullcontext() if session is DecodingSession.current() else using(session.cache)
    with torch.no_grad(), alone, context, session.undone_if_interrupted():
        session.set_up_rows(len(inputs.tokens), inputs.tokens.device)
        session.cache.observe_inputs(inputs.tokens, attention_mask, session.decode_from, session.mask_was_passed)
        output = (session.look_ahead or decode_forward)(session, inputs, all_logits)
    if session.meter is not None:
        session.meter.note(output.logits[:, -1])
    if isinstance(logits_to_keep, torch.Tensor):
        output.logits = output.logits[:, logits_to_keep]
    elif logits_to_keep > 1:
        output.logits = output.logits[:, -logits_to_keep:]
    return output


def inputs_of(
    session: DecodingSession, arguments: Mapping[str, Any], attention_mask: torch.Tensor | None
) -> ForwardInputs:
    """The inputs of a forward, from its arguments.

    Raises:
        ValueError: without tokens, or with ids and embeddings at once.
    """
    given = {name: value for name, value in arguments.items() if value is not None}
    ids, embeds = given.pop("input_ids", None), given.pop("inputs_embeds", None)
    if (ids is None) == (embeds is None):
        raise ValueError("Pass either `input_ids` or `inputs_embeds`.")
    tokens = embeds if ids is None else ids
    if tokens.dim() < 2 or 0 in tokens.shape[:2]:
        raise ValueError(
            f"There are no tokens to process: `input_ids` or `inputs_embeds` has shape {tuple(tokens.shape)}."
        )
    base, is_running = session.base, session.controls is not None
    if is_running and given.get("output_attentions"):
        raise ValueError("`output_attentions` cannot be used under a budget: leave it out.")
    if is_running and getattr(base.config, "output_attentions", False):
        given["output_attentions"] = False  # the config's default is not a request
    if session is DecodingSession.current() and "position_ids" not in accepted_arguments(base):
        given.pop("position_ids", None)  # transformers' loop makes them because the wrapper accepts them
    return ForwardInputs.of(tokens, attention_mask, given)
