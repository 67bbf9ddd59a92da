# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Decides whether a decode step runs as one program of compiled operations, see `execution/stack`."""

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from ..cache.sol_cache import SOLCache
from ..execution.plan import StepPlan
from ..execution.stack.stack import run_step
from .base_forward import default_positions
from .forward_inputs import ForwardInputs
from .session import DecodingSession


def compiled_step(
    session: DecodingSession, inputs: ForwardInputs, plan: StepPlan, is_new: bool | None = None
) -> tuple[CausalLMOutputWithPast, torch.Tensor] | None:
    """A decode step as one program: what the base returns, and the LM head's input `(rows, hidden_size)`.

    `None` if its modules have to run: on an accelerator, for a base or a step of another kind, or for a forward that
    has to return more than logits. Modules or weights that are replaced in the middle of a call, without hooks, are
    seen at its next episode.
    """
    cache = session.cache
    if inputs.tokens.device.type != "cpu" or not isinstance(session.base, PreTrainedModel):
        return None
    if inputs.asks_for_more or inputs.with_prompt or not _hides_only_padding(inputs, cache):
        return None
    given = inputs.along.get("position_ids")
    positions = default_positions(session.base, inputs, cache) if given is None else given.value
    if positions is None:
        positions = torch.full((1, 1), cache.get_seq_length())
    places = positions.expand(len(inputs.tokens), 1)[:, 0]
    if is_new is None:
        is_new = cache.episode.length == 0 or not cache.trace
    found = run_step(session.base, plan, inputs.tokens, places, is_new)
    if found is None:
        return None
    cache.processed = cache.get_seq_length()
    return CausalLMOutputWithPast(logits=found[0], past_key_values=cache), found[1]


def _hides_only_padding(inputs: ForwardInputs, cache: SOLCache) -> bool:
    """Whether the attention mask hides the padding of the cache and nothing else."""
    if inputs.attention_mask is None:
        return cache.padding is None
    mask = inputs.attention_mask[:, : cache.get_seq_length() + 1]
    hidden = 0 if cache.padding is None else int(cache.padding.sum())
    return mask.numel() - int(mask.count_nonzero()) == hidden
