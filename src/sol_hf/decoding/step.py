# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""One forward of the base under a budget: dense prefix, decode steps, KV refresh.

`generate` and `score` process all tokens by [`decode_forward`]. It is stateless: all state is in the [`SOLCache`], and
the settings of the call are in the [`DecodingSession`].

    tokens of a call     | d d d d d d d d | s |        d: one dense forward of the base
    session.decode_from                      ^          s: a decode step each
"""

from dataclasses import replace

import torch
from transformers.modeling_outputs import CausalLMOutputWithPast

from ..cache.sol_cache import SOLCache
from ..controllers.base import Observation
from ..controllers.choice import best_actions, drawn_actions, refuse_nan
from ..execution.plan import StepPlan, active_forward
from .base_forward import ForwardInputs, base_forward, dense_forward, embed, logits_digest
from .captured import current_capture, is_captured
from .kv_refresh import needs_refresh, refresh, take_back_sparse
from .session import DecodingSession


def observe(session: DecodingSession, token: torch.Tensor) -> Observation:
    """The input of the controller before `token` `(rows, 1)` is processed."""
    base, cache, controls = session.base, session.cache, session.require_controls()
    episode = cache.episode
    rows, device = cache.rows, token.device
    seen = cache.get_seq_length() + 1
    count = torch.full((rows,), seen, device=device) if cache.padding is None else seen - cache.padding
    if episode.hidden_state is None and seen > 1:
        raise ValueError("The hidden state before this token is unknown after `crop`: pass two tokens or more.")
    embedding, before = embed(base, token)[:, -1], None
    if episode.length == 0 and episode.token_before is not None:
        before = embed(base, episode.token_before)[:, -1]
    if episode.hidden_state is None:
        size = base.get_output_embeddings().weight.shape[-1]
        episode.hidden_state = torch.zeros(rows, size, device=device, dtype=embedding.dtype)
    last = controls.episode_length - episode.length
    uncontrollable_ahead = (controls.rule.sink_tokens + controls.rule.window_tokens + 2 - count).clamp(min=0)
    space = cache.action_space
    start = torch.full((rows,), len(space), dtype=torch.long, device=device)
    return Observation(
        hidden_state=episode.hidden_state,
        token_embedding=embedding,
        previous_action=episode.steps[-1].action if episode.steps else start,
        controllable=controls.rule.is_controllable(count),
        remaining=(last - uncontrollable_ahead).clamp(min=0).float(),
        step=episode.length,
        total_step=len(cache.trace),
        episode_length=controls.episode_length,
        targets=cache.targets,
        ledger=cache.ledger,
        action_space=space,
        state=episode.controller_state,
        page_fill=controls.rule.page_fill(count),
        previous_hidden_state=episode.steps[-1].previous_hidden if episode.steps else None,
        previous_embedding=before,
        logits_digest=episode.logits_digest,
    )


def choose(observation: Observation, session: DecodingSession) -> torch.Tensor:
    """Action ids `(rows,)`: the best by the processed scores, or a sample; dense for rows not under control."""
    cache, controls, space = session.cache, session.require_controls(), observation.action_space
    scores = controls.controller(observation)
    if scores.shape != (observation.rows, len(space)):
        raise ValueError(
            f"{type(controls.controller).__name__} returned scores of shape {tuple(scores.shape)}, expected "
            f"{(observation.rows, len(space))}."
        )
    refuse_nan(scores, controls.controller)
    action_ids = cache.episode.actions(observation.rows, scores.device)
    scores = controls.processors(action_ids, scores, observation=observation)
    actions = drawn_actions(scores, controls.temperature) if controls.do_sample else best_actions(scores)
    return torch.where(observation.controllable, actions, space.dense_id)


def decode_step(
    session: DecodingSession, token: torch.Tensor, inputs: ForwardInputs, active: torch.Tensor | None = None
) -> CausalLMOutputWithPast:
    """Choose an action for one token per row, `(rows, 1)` or `(rows, 1, embedding_size)`, and process it.

    `active` `(rows,)` is true for rows that are still running; the others do not count in the averages.
    """
    base, cache, controls = session.base, session.cache, session.require_controls()
    if cache.episode.length == controls.episode_length:
        if needs_refresh(session):
            refresh(session, inputs)
        else:
            last = cache.episode
            cache.end_episode(last.hidden_state, last.steps[-1].token, last.logits_digest)
    observation = observe(session, token)
    actions = choose(observation, session)
    values = cache.action_space.values_on(actions.device)[actions]
    if is_captured(session, token, inputs):
        logits, hidden = current_capture(session)(token, values)
        output, is_dense = CausalLMOutputWithPast(logits=logits, past_key_values=cache), False
    else:
        settings = controls.rule, controls.backend, controls.bits_backend, controls.dense_axes
        plan = StepPlan.from_values(values, cache, *settings, parts=session.parts)
        with active_forward(plan) as context:
            output = base_forward(base, token, cache, without_needless_mask(inputs, cache))
        hidden, is_dense = context.last_hidden_state(), plan.is_dense
    counted = observation.controllable if active is None else observation.controllable & active
    cache.record(token, actions, counted, hidden, logits_digest(session, output))
    if cache.episode.first_sparse is None and not is_dense:
        cache.episode.first_sparse = cache.episode.length - 1
    return output


def without_needless_mask(inputs: ForwardInputs, cache: SOLCache) -> ForwardInputs:
    """The inputs of a step, without the attention mask if no row is padded: transformers would copy it to the host."""
    if cache.padding is not None or inputs.tokens.device.type == "cpu":
        return inputs
    return replace(inputs, attention_mask=None)


def decode_forward(
    session: DecodingSession, inputs: ForwardInputs, all_logits: bool, active: torch.Tensor | None = None
) -> CausalLMOutputWithPast:
    """Process `inputs`: densely up to `session.decode_from`, one decode step for each token from there on.

    Without `decode_from`, all tokens but the last are dense. If a dense part follows an unfinished episode, that
    episode's tokens are processed again with it, which refreshes their keys and values.

    Returns:
        `CausalLMOutputWithPast`: the last step's output; its logits are of the last token, `(rows, 1, vocab)`, or of
        all tokens, `(rows, length, vocab)`, with `all_logits`.
    """
    base, cache = session.base, session.cache
    tokens, length = inputs.tokens, inputs.tokens.shape[1]
    dense = length - 1
    if session.controls is None:
        dense = length
    elif session.is_recomputing:
        dense = length
    elif session.decode_from is not None:
        dense = min(max(session.decode_from - cache.get_seq_length(), 0), length)
    outputs = []
    if dense:
        prefix = tokens[:, :dense]
        if cache.episode.length and needs_refresh(session):
            again = take_back_sparse(session)
            if again.is_floating_point() != prefix.is_floating_point():
                again, prefix = embed(base, again), embed(base, prefix)
            prefix = torch.cat([again, prefix], dim=1)
        outputs.append(dense_forward(session, prefix, inputs, dense if all_logits else 1))
    if session.is_recomputing:
        cache.record_dense()
        session.is_recomputing = False
    for index in range(dense, length):
        outputs.append(decode_step(session, tokens[:, index : index + 1], inputs, active))
    last = outputs[-1]
    if all_logits and len(outputs) > 1:
        last.logits = torch.cat([output.logits for output in outputs], dim=1)
    last.past_key_values = cache
    return last
