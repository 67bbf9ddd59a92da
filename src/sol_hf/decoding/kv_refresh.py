# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The KV refresh: a dense forward over the tokens of an episode."""

from dataclasses import dataclass

import torch

from ..cache.paged_layer import PagedLayer
from ..cache.sol_cache import SOLCache
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
    Rows that do not need it, with `kv_refresh="auto"`, get their own keys, values and hidden state back.
    """
    controls, skips_head = session.require_controls(), not session.needs_logits
    spared = SparedRows.of(session)
    for again in take_back_sparse(session, inputs):
        if skips_head and again.length == controls.episode_length and is_captured(session, again):
            captured = current_capture(session, again.length)
            hidden = captured(again.tokens, positions=positions_of(again))[1]
            session.cache.end_episode(hidden, again.tokens[:, -1:])
        else:
            dense_forward(session, again, refresh=RefreshPlan(session.cache, controls.backend, skips_head))
    if spared is not None:
        spared.put_back(session.cache)


def needs_refresh(session: DecodingSession) -> bool:
    """Whether the running episode has to be refreshed, for some row at least.

    An episode without sparse steps is never refreshed. With `kv_refresh="auto"` rows are refreshed whose mean on an
    axis over the steps is below `auto_refresh_below` of its executor, or all rows if the actions are known on an
    accelerator only.
    """
    wanted = True if session.controls is None else session.controls.kv_refresh
    if wanted == "auto" and session.cache.episode.polluted:
        return bool(_rows_below(session.cache).any())
    return bool(wanted) and session.cache.episode.polluted


def spares_rows(session: DecodingSession) -> bool:
    """Whether a refresh of the running episode leaves some rows as they are."""
    is_auto = session.controls is not None and session.controls.kv_refresh == "auto"
    return is_auto and not bool(_rows_below(session.cache).all())


def _rows_below(cache: SOLCache) -> torch.Tensor:
    """The rows `(rows,)` of a sparse episode that `kv_refresh="auto"` refreshes."""
    actions = cache.episode.actions(cache.rows, cache.ledger.total_counts.device)
    if actions.device.type != "cpu":
        return torch.ones(1, dtype=torch.bool)
    means = cache.action_space.values[actions].mean(dim=1)
    below = torch.zeros(len(means), dtype=torch.bool)
    for axis, mean in cache.action_space.by_axis(means).items():
        level = EXECUTORS[axis].auto_refresh_below
        below = below if level is None else below | (mean < level)
    return below


@dataclass(frozen=True)
class SparedRows:
    """What rows that need no refresh had before it, since a refresh is a forward of all rows.

    A row therefore gives the same next to others as alone.

    Args:
        rows (`torch.BoolTensor` of shape `(rows,)`): The rows.
        tails (`list`): Keys and values of every layer since the first sparse step,
            `(rows, kv_heads, tokens, head_dim)`.
        hidden_state (`torch.Tensor` of shape `(rows, hidden_size)`): After the last step.
        digest (`torch.Tensor` of shape `(rows, ...)`, *optional*): What the controller keeps of its logits.
    """

    rows: torch.Tensor
    tails: list[tuple[torch.Tensor, torch.Tensor]]
    hidden_state: torch.Tensor
    digest: torch.Tensor | None

    @classmethod
    def of(cls, session: DecodingSession) -> "SparedRows | None":
        """Copies of what the spared rows have; `None` if all rows are refreshed."""
        if not spares_rows(session):
            return None
        episode = session.cache.episode
        number = len(episode.steps[episode.first_sparse :])
        layers = session.cache.layers
        tails = [(_last(layer.keys, number).clone(), _last(layer.values, number).clone()) for layer in layers]
        assert episode.hidden_state is not None, "there is a state after a step"
        return cls(~_rows_below(session.cache), tails, episode.hidden_state, episode.logits_digest)

    def put_back(self, cache: SOLCache) -> None:
        """Write it back after the refresh."""
        for layer, (keys, values) in zip(cache.layers, self.tails, strict=True):
            number = min(keys.shape[2], layer.keys.shape[2])
            for stored, old in ((layer.keys, keys), (layer.values, values)):
                _last(stored, number)[self.rows] = _last(old, number)[self.rows]
            if isinstance(layer, PagedLayer):
                layer.index_again(layer.get_seq_length() - number)
        episode = cache.episode
        episode.hidden_state = self._mixed(self.hidden_state, episode.hidden_state)
        episode.logits_digest = self._mixed(self.digest, episode.logits_digest)

    def _mixed(self, spared: torch.Tensor | None, refreshed: torch.Tensor | None) -> torch.Tensor | None:
        if spared is None or refreshed is None:
            return refreshed
        return torch.where(self.rows.view(-1, *[1] * (spared.dim() - 1)), spared, refreshed)


def _last(stored: torch.Tensor, number: int) -> torch.Tensor:
    return stored[:, :, stored.shape[2] - number :] if number <= stored.shape[2] else stored
