# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A sliding-window cache layer that can be rolled back to the beginning of its episode."""

from typing import Any

import torch
from transformers.cache_utils import DynamicSlidingWindowLayer


class WindowLayer(DynamicSlidingWindowLayer):
    """A sliding-window layer that keeps the keys which left the window since the last [`WindowLayer.forget`].

    It differs from `DynamicSlidingWindowLayer` in `crop`, which here removes the given tokens only. The original also
    drops the keys that left the window, so that a second crop is not possible.

    Args:
        sliding_window (`int`): Keys that a token sees, itself included.
    """

    keys: torch.Tensor
    values: torch.Tensor
    cumulative_length: int

    def __init__(self, sliding_window: int):
        super().__init__(sliding_window)
        self.activate_past_recording()

    def __getstate__(self) -> dict[str, Any]:
        """Keys and values without the larger tensors that they may be views of."""
        state = dict(vars(self))
        if self.is_initialized:
            state.update(keys=self.keys.clone(), values=self.values.clone())
        return state

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
        kept = self.keys.shape[-2] - (self.cumulative_length - length)
        if kept < min(length, self.sliding_window - 1):
            raise ValueError(
                f"A layer with a window of {self.sliding_window} cannot be cropped by {-tokens_to_remove} tokens: the "
                "keys before the running episode are gone."
            )
        self.keys, self.values = self.keys[..., :kept, :], self.values[..., :kept, :]
        self.cumulative_length = length

    def forget(self) -> None:
        """Drop the keys that have left the window."""
        if self.is_initialized:
            self.keys = self.keys[..., -self.sliding_window + 1 :, :]
            self.values = self.values[..., -self.sliding_window + 1 :, :]
