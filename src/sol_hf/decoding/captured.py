# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""When a forward runs from a CUDA graph."""

import torch
from transformers import PreTrainedModel

from ..cache.sol_cache import SOLCache
from ..execution.cuda_graphs import CapturedForward
from .base_forward import ForwardInputs


NOT_CAPTURED = ("use_cache", "cache_position", "logits_to_keep")
"""Arguments of a forward that make no difference to a captured one."""


GROWTH_TOKENS = 256
"""Room for so many tokens at least, or a quarter more, is made with a CUDA graph."""


def is_captured(cache: SOLCache, tokens: torch.Tensor, inputs: ForwardInputs) -> bool:
    """Whether the forward that processes `tokens` `(rows, number)` is to run from a [`CapturedForward`].

    One that is asked for more than logits, such as all hidden states, is not.
    """
    length = cache.get_seq_length()
    extra = (value for name, value in inputs.extra.items() if name not in NOT_CAPTURED)
    asks_more = any(value is not None and value is not False for value in extra)
    if cache.controls.backend == "reference" or tokens.is_floating_point() or length == 0 or asks_more:
        return False
    if cache.controls.cuda_graphs:
        return True
    return cache.capture_up_to is not None and length + tokens.shape[1] <= cache.capture_up_to


def current_capture(base: PreTrainedModel, cache: SOLCache, refreshed: int = 0) -> CapturedForward:
    """The cache's [`CapturedForward`] for steps, or for KV refreshes of so many tokens a row.

    It is made anew if what it would compute has changed, or if there is no room for the tokens.
    """
    controls, length = cache.controls, cache.get_seq_length() + (refreshed or 1)
    room = max(cache.captured_room, cache.capture_up_to or 0)
    if length > room:
        room = cache.captured_room = length + max(GROWTH_TOKENS, length // 4)
    kind = "refresh" if refreshed else "step"
    captured = cache.captured.get(kind)
    if captured is None or not captured.is_current(base, controls.rule, controls.dense_axes, refreshed):
        captured = CapturedForward(base, cache, controls.rule, controls.dense_axes, room, refreshed)
        cache.captured[kind] = captured
    return captured
