# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The KV refresh: a dense forward over the tokens of an episode."""

from ..execution.executors import EXECUTORS
from ..execution.plan import RefreshPlan
from .base_forward import dense_forward
from .captured import current_capture, is_captured, positions_of
from .forward_inputs import ForwardInputs, join_runs
from .session import DecodingSession


def take_back_sparse(session: DecodingSession, inputs: ForwardInputs) -> list[ForwardInputs]:
    """Drop all keys and values since the first sparse step of the running episode.

    Args:
        session ([`DecodingSession`]): The running call.
        inputs ([`ForwardInputs`]): Of the forward that needs the refresh.

    Returns:
        `list[ForwardInputs]`: Those tokens, to be processed again: one item if all steps had the same arguments.
    """
    episode = session.cache.episode
    steps = [inputs.again(step.token, step.along) for step in episode.steps[episode.first_sparse :]]
    if session.rollback is not None:
        session.rollback.keep_tail(len(steps))
    session.cache.drop_tokens(len(steps))
    return join_runs(steps)


def refresh(session: DecodingSession, inputs: ForwardInputs) -> None:
    """KV refresh: recompute all keys and values since the episode's first sparse step by a dense forward.

    The token after the episode is known already. Logits are therefore computed only if the controller needs them.
    """
    controls, skips_head = session.require_controls(), not session.needs_logits
    for again in take_back_sparse(session, inputs):
        if skips_head and again.length == controls.episode_length and is_captured(session, again):
            captured = current_capture(session, again.length)
            hidden = captured(again.tokens, positions=positions_of(again))[1]
            session.cache.end_episode(hidden, again.tokens[:, -1:])
        else:
            dense_forward(session, again, refresh=RefreshPlan(session.cache, controls.backend, skips_head))


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
