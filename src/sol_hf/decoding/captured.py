# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Decides whether a forward runs from a CUDA graph, and finds or makes the graph."""

import torch

from ..execution.cuda_graphs import CapturedForward
from .forward_inputs import ForwardInputs
from .session import DecodingSession


GROWTH_TOKENS = 256
"""A CUDA graph is captured with storage for at least this many additional tokens, or a quarter of the text if more."""


def is_captured(session: DecodingSession, inputs: ForwardInputs) -> bool:
    """Whether a forward is to run from a [`CapturedForward`].

    A forward that has to return more than logits, such as all hidden states, or that takes more than tokens and their
    positions, is not.
    """
    controls, length = session.require_controls(), session.cache.get_seq_length()
    if not controls.cuda_graphs or inputs.tokens.is_floating_point() or length == 0 or inputs.asks_for_more:
        return False
    return controls.cuda_graphs is True or length + inputs.length <= controls.cuda_graphs


def positions_of(inputs: ForwardInputs) -> torch.Tensor | None:
    """Positions of the tokens `(rows, length)` or `(1, length)`, `None` if they are not given."""
    positions = inputs.along.get("position_ids")
    return None if positions is None else positions.value


def current_capture(session: DecodingSession, refreshed: int = 0) -> CapturedForward:
    """The session's [`CapturedForward`] for steps, or for KV refreshes of `refreshed` tokens per row.

    It is captured again if its computation has changed, or if there is not enough storage for the tokens.
    """
    base, cache, controls, graphs = session.base, session.cache, session.require_controls(), session.graphs
    length = cache.get_seq_length() + (refreshed or 1)
    if controls.cuda_graphs is not True:
        graphs.room = max(graphs.room, controls.cuda_graphs)
    if length > graphs.room:
        graphs.room = length + max(GROWTH_TOKENS, length // 4)
    kind = "refresh" if refreshed else "step"
    captured = graphs.forwards.get(kind)
    rule, dense_axes, backend = controls.rule, controls.dense_axes, controls.bits_backend
    if captured is None or not captured.is_current(base, rule, dense_axes, refreshed, backend):
        captured = CapturedForward(base, cache, rule, dense_axes, graphs.room, refreshed, session.parts, backend)
        graphs.forwards[kind] = captured
    return captured
