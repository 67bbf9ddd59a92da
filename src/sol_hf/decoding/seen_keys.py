# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What follows from the number of keys that the rows of a step see."""

from typing import Any

import torch

from ..budget.action_space import ActionSpace
from ..selection.rule import SelectionRule
from .session import DecodingSession


def seen_keys(session: DecodingSession) -> dict[str, Any]:
    """The fields of an [`Observation`] that follow from it.

    Without padding all rows see the same number, which the host knows. Their tensors are then made once a call.
    """
    cache, controls = session.cache, session.require_controls()
    rule, seen, padding = controls.rule, cache.get_seq_length() + 1, cache.padding
    left = controls.episode_length - cache.episode.length
    ends = None if session.steps is None else session.steps - len(cache.trace)
    least = rule.sink_tokens + rule.window_tokens + 2
    if padding is None and not rule.short_text_tokens and not isinstance(ends, torch.Tensor):
        ahead = max(least - seen, 0)
        to_end = (
            None if ends is None else torch.full((cache.rows,), float(max(ends - ahead, 0)), device=session.device)
        )
        return dict(
            controllable=session.in_all_rows(rule.is_controllable(seen), torch.bool),
            remaining=session.in_all_rows(float(max(left - ahead, 0)), torch.float32),
            page_fill=session.in_all_rows(rule.page_fill(seen), torch.float32),
            remaining_in_call=to_end,
        )
    count = torch.full((cache.rows,), seen, device=session.device) if padding is None else seen - padding
    uncontrollable_ahead = (least - count).clamp(min=0)
    return dict(
        controllable=rule.is_controllable(count),
        remaining=(left - uncontrollable_ahead).clamp(min=0).float(),
        page_fill=rule.page_fill(count),
        held=held_axes(rule, count, cache.action_space),
        remaining_in_call=None if ends is None else (ends - uncontrollable_ahead).clamp(min=0).float(),
    )


def held_axes(rule: SelectionRule, count: torch.Tensor, space: ActionSpace) -> torch.Tensor | None:
    """The axes `(rows, axes)` that a step holds at their largest level: `token_keep`, where it reads a short text.

    Args:
        rule ([`SelectionRule`]): Which texts are short.
        count (`torch.Tensor` of shape `(rows,)`): Keys that the step sees, its own included.
        space ([`ActionSpace`]): The axes.
    """
    if not rule.short_text_tokens:
        return None
    held = torch.zeros(len(count), len(space.axes), dtype=torch.bool, device=count.device)
    held[:, space.axis_names.index("token_keep")] = rule.reads_all(count)
    return held
