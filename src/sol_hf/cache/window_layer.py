# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A sliding-window cache layer that is written in place, and can be rolled back to the beginning of its episode."""

import torch
from transformers.cache_utils import DynamicSlidingWindowLayer

from .stored_layer import StoredLayer


class WindowLayer(StoredLayer, DynamicSlidingWindowLayer):
    """A sliding-window layer that keeps the keys which left the window since the last [`WindowLayer.forget`].

    It differs from `DynamicSlidingWindowLayer` in two ways. Its window slides over storage that is allocated ahead;
    at its end, what is kept is moved to new storage. And `crop` removes the given tokens only. The original also drops
    the keys that left the window, so that a second crop is not possible.

    Args:
        sliding_window (`int`): Keys that a token sees, itself included.
        kv_dtype (`torch.dtype`, *optional*): See [`StoredLayer`].
    """

    cumulative_length: int

    def __init__(self, sliding_window: int, kv_dtype: torch.dtype | None = None):
        super().__init__(kv_dtype, sliding_window=sliding_window)
        self.activate_past_recording()

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        """Append keys and values of shape `(rows, kv_heads, new, head_dim)`.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: Those that any of the new tokens sees.
        """
        self.store(key_states, value_states)
        seen = self.sliding_window - 1 + key_states.shape[-2]
        return self.given_to_base(self.keys[:, :, -seen:], self.values[:, :, -seen:])

    def append_slots(self, number: int) -> None:
        super().append_slots(number)
        self.cumulative_length += number

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last `-tokens_to_remove` tokens.

        Raises:
            ValueError: for a positive number, or a number of tokens whose removal needs keys that are no longer kept.
        """
        if tokens_to_remove > 0:
            raise ValueError(f"`crop` takes the number of tokens to remove as a negative number: {tokens_to_remove}.")
        if tokens_to_remove == 0 or not self.is_initialized:
            return
        length = max(0, self.cumulative_length + tokens_to_remove)
        removed = self.cumulative_length - length
        if self.length - self.first - removed < min(length, self.sliding_window - 1):
            raise ValueError(
                f"A layer with a window of {self.sliding_window} cannot be cropped by {-tokens_to_remove} tokens: the "
                "keys before the running episode are gone."
            )
        self._set_slots(self.first, self.length - removed)
        self.cumulative_length = length

    def forget(self) -> None:
        """Drop the keys that have left the window, and storage of which most is not used any more."""
        if not self.is_initialized:
            return
        self._set_slots(max(self.first, self.length - self.sliding_window + 1), self.length)
        kept = self.length - self.first
        if self.first > kept + self.growth_slots:
            self._move(kept + self.growth_slots)
