# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""After a `generate` call under a budget: every new token has a decode step over the cache of the call."""

from typing import Any

import torch
from transformers.utils import ModelOutput

from ..errors import PlanNotExecutedError
from .session import DecodingSession


def check_executed(session: DecodingSession | None, output: Any, prompt: torch.Tensor | None, steps: int) -> None:
    """Raise a [`PlanNotExecutedError`] if new tokens were computed without a decode step, or over another cache.

    Args:
        session ([`DecodingSession`]): The call.
        output: What `generate` returns.
        prompt (`torch.Tensor`): Ids `(rows, length)`, or embeddings.
        steps (`int`): New tokens per row, as the stopping criteria have seen them.
    """
    assert session is not None and prompt is not None, "a call under a budget has both"
    sequences = output.get("sequences") if isinstance(output, ModelOutput) else output
    if isinstance(sequences, torch.Tensor) and sequences.dim() == 2:
        steps = max(steps, sequences.shape[1] - (0 if prompt.is_floating_point() else prompt.shape[1]))
    missing = steps - (len(session.cache.trace) if session.look_ahead is None else session.look_ahead.processed)
    returned = output.get("past_key_values") if isinstance(output, ModelOutput) else None
    if missing > 0:
        raise PlanNotExecutedError(dict.fromkeys(_axes(session), [f"{missing} of {steps} new tokens"]))
    if returned is not None and returned is not session.cache:
        raise PlanNotExecutedError(dict.fromkeys(_axes(session), [f"a {type(returned).__name__} of its own"]))


def _axes(session: DecodingSession) -> list[str]:
    return [
        axis for axis in session.cache.action_space.axis_names if axis not in session.require_controls().dense_axes
    ]
