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
from ..controllers.policy import PolicyController
from ..controllers.processors import hold_axes
from ..execution.plan import StepPlan, active_forward
from .base_forward import base_forward, dense_forward, embed, logits_digest
from .captured import current_capture, is_captured, positions_of
from .compiled_step import compiled_step
from .forward_inputs import ForwardInputs
from .joined_outputs import join_outputs, last_tokens
from .kv_refresh import refresh, take_back
from .refresh_rule import needs_refresh, spares_rows
from .seen_keys import seen_keys
from .session import DecodingSession


def observe(session: DecodingSession, token: torch.Tensor) -> Observation:
    """The input of the controller before `token` `(rows, 1)` is processed."""
    base, cache, controls = session.base, session.cache, session.require_controls()
    episode = cache.episode
    if episode.hidden_state is None and cache.get_seq_length():
        raise ValueError("The hidden state before this token is unknown after `crop`: pass two tokens or more.")
    embedding, before = embed(base, token)[:, -1], None
    if episode.length == 0 and episode.token_before is not None:
        before = embed(base, episode.token_before)[:, -1]
    if episode.hidden_state is None:
        size = base.get_output_embeddings().weight.shape[-1]
        episode.hidden_state = torch.zeros(cache.rows, size, device=token.device, dtype=embedding.dtype)
    space, last = cache.action_space, episode.steps[-1] if episode.steps else None
    return Observation(
        hidden_state=episode.hidden_state,
        token_embedding=embedding,
        previous_action=session.in_all_rows(len(space), torch.long) if last is None else last.action,
        step=episode.length,
        total_step=len(cache.trace),
        episode_length=controls.episode_length,
        targets=cache.targets,
        ledger=cache.ledger,
        action_space=space,
        state=episode.controller_state,
        previous_hidden_state=None if last is None else last.previous_hidden,
        previous_embedding=before,
        logits_digest=episode.logits_digest,
        backend=controls.backend,
        **seen_keys(session),
    )


def choose(observation: Observation, session: DecodingSession) -> torch.Tensor:
    """Action ids `(rows,)`: the best by the processed scores, or a sample; dense for rows not under control."""
    cache, controls, space = session.cache, session.require_controls(), observation.action_space
    scores = None
    if controls.simple_limits is not None and isinstance(controls.controller, PolicyController):
        chosen, scores = controls.controller.choose(observation, controls.simple_limits)
        if chosen is not None:
            return chosen
    shown = observation.as_asked(controls.controller)
    shown = shown.copy() if controls.needs_copies else shown
    scores = controls.controller(shown) if scores is None else scores
    if scores.shape != (observation.rows, len(space)):
        raise ValueError(
            f"{type(controls.controller).__name__} returned scores of shape {tuple(scores.shape)}, expected "
            f"{(observation.rows, len(space))}."
        )
    refuse_nan(scores, controls.controller)
    before = observation.previous_action[:, None]  # the limits do not look at it
    if controls.edits:
        before = cache.episode.actions(observation.rows, scores.device)
        scores = controls.edits(before, scores, observation=shown)
    scores = controls.limits(before, scores, observation=observation)
    if observation.held is not None:
        scores = hold_axes(scores, observation.held, space)
    actions = drawn_actions(scores, controls.temperature) if controls.do_sample else best_actions(scores)
    return torch.where(observation.controllable, actions, space.dense_id)


def decode_step(
    session: DecodingSession, inputs: ForwardInputs, active: torch.Tensor | None = None
) -> CausalLMOutputWithPast:
    """Choose an action for one token per row, and process it.

    Args:
        session ([`DecodingSession`]): The running call.
        inputs ([`ForwardInputs`]): The token and its arguments.
        active (`torch.BoolTensor` of shape `(rows,)`, *optional*): Rows that are still running; the others do not
            count in the averages.
    """
    cache, controls, token = session.cache, session.require_controls(), inputs.tokens
    if cache.episode.length == controls.episode_length:
        if needs_refresh(session):
            refresh(session, inputs)
        else:
            last = cache.episode
            cache.end_episode(last.hidden_state, last.steps[-1].token, last.logits_digest)
    observation = observe(session, token)
    actions = choose(observation, session)
    values = cache.action_space.values_on(actions.device)[actions]
    if is_captured(session, inputs):
        logits, hidden = current_capture(session)(token, values, positions_of(inputs))
        output, is_dense = CausalLMOutputWithPast(logits=logits, past_key_values=cache), False
    else:
        settings = controls.rule, controls.backend, controls.bits_backend, controls.dense_axes
        plan = StepPlan.from_values(values, cache, *settings, parts=session.parts)
        output, hidden = run_planned(session, inputs, plan, embedding=observation.token_embedding)
        is_dense = plan.is_dense
    counted = observation.controllable if active is None else observation.controllable & active
    digest = logits_digest(session, output)
    cache.record(token, actions, counted, hidden, digest, inputs.along, observation.held)
    if cache.episode.first_sparse is None and not is_dense:
        cache.episode.first_sparse = cache.episode.length - 1
    return output


def run_planned(
    session: DecodingSession,
    inputs: ForwardInputs,
    plan: StepPlan,
    is_new: bool | None = None,
    embedding: torch.Tensor | None = None,
) -> tuple[CausalLMOutputWithPast, torch.Tensor]:
    """A step by its plan: what the base returns, and the LM head's input `(rows, hidden_size)`.

    `is_new` is whether to look for modules and weights that were replaced; by default at the begin of an episode.
    `embedding` `(rows, embedding_size)` is that of the token, if it is known already.
    """
    compiled = compiled_step(session, inputs, plan, is_new, embedding)
    if compiled is not None:
        return compiled
    with active_forward(plan) as context:
        output = base_forward(session.base, without_needless_mask(inputs, session.cache), session.cache)
    return output, context.last_hidden_state()


def without_needless_mask(inputs: ForwardInputs, cache: SOLCache) -> ForwardInputs:
    """The inputs of a step, without the attention mask if no row is padded: transformers would copy it to the host."""
    if cache.padding is not None or inputs.tokens.device.type == "cpu":
        return inputs
    return replace(inputs, attention_mask=None)


def dense_part(session: DecodingSession, inputs: ForwardInputs, all_logits: bool) -> CausalLMOutputWithPast:
    """Process tokens densely, and again with them those of an unfinished episode, which refreshes their keys."""
    cache, logits_to_keep = session.cache, inputs.length if all_logits else 1
    whole = inputs
    if cache.episode.length and needs_refresh(session) and spares_rows(session):
        refresh(session, inputs, is_new_turn=True)
    elif cache.episode.length and needs_refresh(session):
        *before, last = take_back(session, inputs, cache.episode.first_sparse or 0)
        if last.tokens.is_floating_point() != inputs.tokens.is_floating_point():
            last, whole = (part.embedded(session.base) for part in (last, whole))
        if whole.can_follow(last):
            whole = whole.after(last)
        else:
            before.append(last)
        for part in before:
            dense_forward(session, part)
    output = dense_forward(session, whole, logits_to_keep)
    return last_tokens(output, whole.length, inputs.length, cache.rows)


def decode_forward(
    session: DecodingSession, inputs: ForwardInputs, all_logits: bool, active: torch.Tensor | None = None
) -> CausalLMOutputWithPast:
    """Process `inputs`: densely up to `session.decode_from`, one decode step for each token from there on.

    Without `decode_from`, all tokens but the last are dense. If a dense part follows an unfinished episode, that
    episode's tokens are processed again with it, which refreshes their keys and values.

    Returns:
        `CausalLMOutputWithPast`: What one forward over all tokens returns; its logits are of the last token,
        `(rows, 1, vocab)`, or of all tokens, `(rows, length, vocab)`, with `all_logits`.
    """
    cache, length = session.cache, inputs.length
    dense = length - 1
    if session.controls is None:
        dense = length
    elif session.is_recomputing:
        dense = length
    elif session.decode_from is not None:
        dense = min(max(session.decode_from - cache.get_seq_length(), 0), length)
    outputs, lengths = [], [dense] if dense else []
    if dense:
        outputs.append(dense_part(session, inputs.part(0, dense, is_dense=True), all_logits))
    if session.is_recomputing:
        cache.record_dense()
        session.is_recomputing = False
    for index in range(dense, length):
        outputs.append(decode_step(session, inputs.part(index, index + 1, is_dense=False), active))
        lengths.append(1)
    joined = join_outputs(outputs, lengths, cache.rows)
    if all_logits and len(outputs) > 1:
        joined.logits = torch.cat([output.logits for output in outputs], dim=1)
    joined.past_key_values = cache
    return joined
