# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The KV refresh: a dense forward over the tokens of an episode."""

from dataclasses import dataclass

import torch

from ..cache.paged_layer import PagedLayer
from ..cache.sol_cache import SOLCache
from ..execution.plan import RefreshPlan
from .base_forward import dense_forward
from .captured import current_capture, is_captured, positions_of
from .forward_inputs import ForwardInputs, join_runs
from .refresh_rule import rows_to_refresh, spares_rows, weights_read
from .session import DecodingSession


def take_back(session: DecodingSession, inputs: ForwardInputs, begin: int) -> list[ForwardInputs]:
    """Drop the keys and values of the running episode from a step on.

    Args:
        session ([`DecodingSession`]): The running call.
        inputs ([`ForwardInputs`]): Of the forward that needs the refresh.
        begin (`int`): The first step to take back.

    Returns:
        `list[ForwardInputs]`: Those tokens, to be processed again: one item if all steps had the same arguments.
    """
    steps = [inputs.again(step.token, step.along) for step in session.cache.episode.steps[begin:]]
    if session.rollback is not None:
        session.rollback.keep_tail(len(steps))
    session.cache.drop_tokens(len(steps))
    return join_runs(steps)


def refresh(session: DecodingSession, inputs: ForwardInputs, is_new_turn: bool = False) -> None:
    """KV refresh: recompute the keys and values of the episode by a forward that leaves nothing out.

    It begins at the first sparse step. The token after the episode is known already. Logits are therefore computed
    only if the controller needs them. Rows that do not need it, see [`rows_to_refresh`], get their own keys, values
    and hidden state back.

    Under `bits_backend="nested"` the weights are read from planes, see [`weights_read`]. As this changes keys of dense
    steps, too, it begins at the first step of the episode, whatever other rows have done.

    Args:
        session ([`DecodingSession`]): The running call.
        inputs ([`ForwardInputs`]): Of the forward that needs the refresh.
        is_new_turn (`bool`, *optional*, defaults to `False`): Whether a prompt follows, for which the original weights
            are read anyway. They are then read for the refresh as well.
    """
    controls, skips_head = session.require_controls(), not session.needs_logits
    levels = {} if is_new_turn else weights_read(session)
    begin = 0 if levels else session.cache.episode.first_sparse or 0
    spared = SparedRows.of(session, begin)
    for again in take_back(session, inputs, begin):
        if skips_head and again.length == controls.episode_length and is_captured(session, again):
            _refresh_captured(session, again, levels)
        else:
            plan = RefreshPlan(session.cache, controls.backend, skips_head, levels=levels, parts=session.parts)
            dense_forward(session, again, refresh=plan)
    if spared is not None:
        spared.put_back(session.cache)


def _refresh_captured(session: DecodingSession, again: ForwardInputs, levels: dict[str, torch.Tensor]) -> None:
    """Run a refresh of a whole episode from a CUDA graph."""
    rows, device = again.tokens.shape[0], again.tokens.device
    axes = session.cache.action_space.axes
    values = [levels.get(axis.name, torch.full((rows,), axis.dense, device=device)) for axis in axes]
    captured = current_capture(session, again.length)
    hidden = captured(again.tokens, torch.stack(values, dim=1), positions_of(again))[1]
    session.cache.end_episode(hidden, again.tokens[:, -1:])


@dataclass(frozen=True)
class SparedRows:
    """What rows that need no refresh had before it, since a refresh is a forward of all rows.

    A row therefore gives the same next to others as alone.

    Args:
        rows (`torch.BoolTensor` of shape `(rows,)`): The rows.
        tails (`list`): Keys and values of every layer of the steps that are refreshed,
            `(rows, kv_heads, tokens, head_dim)`.
        hidden_state (`torch.Tensor` of shape `(rows, hidden_size)`): After the last step.
        digest (`torch.Tensor` of shape `(rows, ...)`, *optional*): What the controller keeps of its logits.
    """

    rows: torch.Tensor
    tails: list[tuple[torch.Tensor, torch.Tensor]]
    hidden_state: torch.Tensor
    digest: torch.Tensor | None

    @classmethod
    def of(cls, session: DecodingSession, begin: int) -> "SparedRows | None":
        """Copies of what the spared rows have from step `begin` on; `None` if all rows are refreshed."""
        if not spares_rows(session):
            return None
        episode = session.cache.episode
        number = len(episode.steps[begin:])
        layers = session.cache.layers
        tails = [(_last(layer.keys, number).clone(), _last(layer.values, number).clone()) for layer in layers]
        assert episode.hidden_state is not None, "there is a state after a step"
        return cls(~rows_to_refresh(session), tails, episode.hidden_state, episode.logits_digest)

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
