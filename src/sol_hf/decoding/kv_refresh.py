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
    """Drop what the running episode wrote since its first sparse step, and return those tokens `(rows, steps)`.

    They are embeddings if any of them came as one.
    """
    episode = session.cache.episode
    tokens = [step.token for step in episode.steps[episode.first_sparse :]]
    session.cache.drop_tokens(len(tokens))
    if any(token.is_floating_point() for token in tokens):
        tokens = [embed(session.base, token) for token in tokens]
    return torch.cat(tokens, dim=1)


def refresh(session: DecodingSession, inputs: ForwardInputs) -> None:
    """KV refresh: replace what the episode's steps wrote since the first sparse one, by one dense forward.

    Its logits are not computed, unless the controller looks at them: the token after the episode is known already.
    """
    tokens, controls, skips_head = take_back_sparse(session), session.require_controls(), not session.needs_logits
    if skips_head and tokens.shape[1] == controls.episode_length and is_captured(session, tokens, inputs):
        captured = current_capture(session, tokens.shape[1])
        session.cache.end_episode(captured(tokens)[1], tokens[:, -1:])
        return
    plan = RefreshPlan(session.cache, controls.backend, skips_head)
    dense_forward(session, tokens, ForwardInputs(tokens, inputs.attention_mask), refresh=plan)


def needs_refresh(session: DecodingSession) -> bool:
    """Whether the running episode left anything in the cache that a dense forward would not have, and that matters.

    With `kv_refresh="auto"` it matters if an axis was below the level that its executor names, on average over the
    steps of any row, or if only an accelerator knows the actions.
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
