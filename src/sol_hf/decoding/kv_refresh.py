# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The KV refresh: a dense forward over the tokens of an episode."""

import torch

from ..execution.executors import EXECUTORS
from ..execution.plan import RefreshPlan
from .base_forward import ForwardInputs, dense_forward, embed
from .captured import current_capture, is_captured
from .session import DecodingSession


def take_back_sparse(session: DecodingSession) -> torch.Tensor:
    """Drop all keys and values since the first sparse step of the running episode, and return those tokens.

    Returns:
        `torch.Tensor`: Ids `(rows, steps)`, or embeddings `(rows, steps, embedding_size)` if any of them was one.
    """
    episode = session.cache.episode
    tokens = [step.token for step in episode.steps[episode.first_sparse :]]
    session.cache.drop_tokens(len(tokens))
    if any(token.is_floating_point() for token in tokens):
        tokens = [embed(session.base, token) for token in tokens]
    return torch.cat(tokens, dim=1)


def refresh(session: DecodingSession, inputs: ForwardInputs) -> None:
    """KV refresh: recompute all keys and values since the episode's first sparse step by one dense forward.

    The token after the episode is known already. Logits are therefore computed only if the controller needs them.
    """
    tokens, controls, skips_head = take_back_sparse(session), session.require_controls(), not session.needs_logits
    if skips_head and tokens.shape[1] == controls.episode_length and is_captured(session, tokens, inputs):
        captured = current_capture(session, tokens.shape[1])
        session.cache.end_episode(captured(tokens)[1], tokens[:, -1:])
        return
    plan = RefreshPlan(session.cache, controls.backend, skips_head)
    dense_forward(session, tokens, ForwardInputs(tokens, inputs.attention_mask), refresh=plan)


def needs_refresh(session: DecodingSession) -> bool:
    """Whether the running episode has to be refreshed.

    An episode without sparse steps is never refreshed. With `kv_refresh="auto"` an episode is refreshed if the mean of
    an axis over the steps of any row is below `auto_refresh_below` of its executor, or if the actions are known on an
    accelerator only.
    """
    cache = session.cache
    wanted = True if session.controls is None else session.controls.kv_refresh
    if wanted != "auto" or not cache.episode.polluted:
        return bool(wanted) and cache.episode.polluted
    actions = cache.episode.actions(cache.rows, cache.ledger.total_counts.device)
    if actions.device.type != "cpu":
        return True
    means = cache.action_space.values[actions].mean(dim=1)
    below = ((EXECUTORS[axis].auto_refresh_below, mean) for axis, mean in cache.action_space.by_axis(means).items())
    return any(level is not None and bool(mean.min() < level) for level, mean in below)
