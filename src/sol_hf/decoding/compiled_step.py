# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Decides whether a forward of a few tokens runs as one program of compiled operations, see `execution/stack`."""

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from ..cache.sol_cache import SOLCache
from ..execution.plan import RefreshPlan, StepPlan
from ..execution.stack.stack import run_refresh, run_step
from .forward_inputs import ForwardInputs
from .positions import default_positions
from .session import DecodingSession


def compiled_step(
    session: DecodingSession,
    inputs: ForwardInputs,
    plan: StepPlan,
    is_new: bool | None = None,
    embedding: torch.Tensor | None = None,
) -> tuple[CausalLMOutputWithPast, torch.Tensor] | None:
    """A decode step as one program: what the base returns, and the LM head's input `(rows, hidden_size)`.

    `embedding` `(rows, embedding_size)` is that of the token, if it is known already.

    `None` if its modules have to run: on an accelerator, for a base or a step of another kind, or for a forward that
    has to return more than logits. Modules or weights that are replaced in the middle of a call, without hooks, are
    seen at its next episode.
    """
    cache = session.cache
    if not _is_plain(session, inputs):
        return None
    if is_new is None:
        is_new = cache.episode.length == 0 or not cache.trace
    places = _positions_of(session, inputs)[:, 0]
    tokens = inputs.tokens if embedding is None else embedding[:, None]
    found = run_step(session.base, plan, tokens, places, is_new)
    if found is None:
        return None
    cache.processed = cache.get_seq_length()
    return CausalLMOutputWithPast(logits=found[0], past_key_values=cache), found[1]


def compiled_refresh(
    session: DecodingSession, inputs: ForwardInputs, plan: RefreshPlan, logits_to_keep: int
) -> tuple[CausalLMOutputWithPast, torch.Tensor] | None:
    """A dense forward of several tokens as one program: what the base returns, and the LM head's inputs.

    These are `(rows, tokens, hidden_size)`. `None` if its modules have to run, as in [`compiled_step`].
    """
    cache = session.cache
    if not _is_plain(session, inputs):
        return None
    found = run_refresh(session.base, plan, inputs.tokens, _positions_of(session, inputs))
    if found is None:
        return None
    logits, hidden = found
    cache.processed = cache.get_seq_length()
    if logits is None:
        logits = hidden.new_empty(len(hidden), 0, len(session.base.get_output_embeddings().weight))
    elif logits_to_keep:
        logits = logits[:, -logits_to_keep:]
    return CausalLMOutputWithPast(logits=logits, past_key_values=cache), hidden


def _is_plain(session: DecodingSession, inputs: ForwardInputs) -> bool:
    """Whether a forward on the CPU has to return logits only, and hides nothing but padding."""
    if inputs.tokens.device.type != "cpu" or not isinstance(session.base, PreTrainedModel):
        return False
    return not inputs.asks_for_more and not inputs.with_prompt and _hides_only_padding(inputs, session.cache)


def _positions_of(session: DecodingSession, inputs: ForwardInputs) -> torch.Tensor:
    """Positions of the tokens, `(rows, tokens)`."""
    given = inputs.along.get("position_ids")
    positions = default_positions(session.base, inputs, session.cache) if given is None else given.value
    if positions is None:
        begin = session.cache.get_seq_length()
        positions = torch.arange(begin, begin + inputs.length)[None]
    return positions.expand(len(inputs.tokens), inputs.length)


def _hides_only_padding(inputs: ForwardInputs, cache: SOLCache) -> bool:
    """Whether the attention mask hides the padding of the cache and nothing else."""
    if inputs.attention_mask is None:
        return cache.padding is None
    mask = inputs.attention_mask[:, : cache.get_seq_length() + inputs.length]
    hidden = 0 if cache.padding is None else int(cache.padding.sum())
    return mask.numel() - int(mask.count_nonzero()) == hidden
