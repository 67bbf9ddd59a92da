# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The index of the criterion `sketch`: the keys of a cache layer in a few bits.

It follows from the keys, so it is not saved with a cache, but made again.
"""

from collections.abc import Callable

import torch

from ..selection.sketch import MOST_IN_MEAN, bytes_per_key, channel_means, encode, pack, tokens_in_mean, unpack


class SketchIndex:
    """Packed codes of the keys of one layer.

    Args:
        bits (`int`): Bits of a code.

    Attributes:
        packed (`torch.Tensor` of shape `(rows, kv_heads, capacity, bytes)`): Codes, see [`pack`].
        scale (`torch.Tensor` of shape `(rows, kv_heads, capacity)`): Scales, in the dtype of the keys.
        tokens (`int`): Slots that are up to date.
    """

    def __init__(self, bits: int):
        self.bits, self.tokens = bits, 0
        self.packed = self.scale = self.mean = self._in_mean = torch.empty(0)
        self._last_of_mean = 0

    def update(
        self,
        keys: torch.Tensor,
        capacity: int,
        first_key: torch.Tensor,
        padding: tuple[int, int],
        most: int = 0,
        keeps_means: bool = False,
    ) -> None:
        """Encode the keys that were not encoded before; all of them if the mean of a row has changed.

        Args:
            keys (`torch.Tensor` of shape `(rows, kv_heads, slots, head_dim)`): Cached keys.
            capacity (`int`): Slots to allocate for, at least `slots`.
            first_key (`torch.Tensor` of shape `(rows,)`): First slot that holds a key of the row, not padding.
            padding (`tuple[int, int]`): Smallest and largest value of `first_key`, known to the host.
            most (`int`, *optional*, defaults to 0): So many keys, or fewer, are left to the caller, who then sets
                `tokens`.
            keeps_means (`bool`, *optional*, defaults to `False`): Whether the caller also finds out where these keys
                change a mean, and then encodes all keys of the row.
        """
        slots, settled = keys.shape[2], padding[1] + MOST_IN_MEAN
        if self.is_complete(slots, padding):
            return
        self.reserve(keys, capacity if self.capacity < slots else 0)
        if keeps_means and self.tokens and self.tokens + most >= slots:
            return
        if self.tokens < settled:  # the mean of a row may still change
            in_mean = tokens_in_mean(slots - first_key).to(keys.device)
            if self.tokens == 0 or keys.device.type != "cpu" or not torch.equal(in_mean, self._in_mean):
                self.mean.copy_(channel_means(keys[:, :, :settled], first_key.to(keys.device), in_mean))
                self.tokens, self._in_mean = 0, in_mean
        if self.tokens + most < slots:
            codes, scale = encode(keys[:, :, self.tokens :], self.mean, self.bits)
            self.packed[:, :, self.tokens : slots] = pack(codes, self.bits)
            self.scale[:, :, self.tokens : slots] = scale
            self.tokens = slots

    def is_complete(self, slots: int, padding: tuple[int, int]) -> bool:
        """Whether there are codes of the keys in all of `slots`; `padding` as of [`SketchIndex.update`]."""
        self._last_of_mean = padding[1] + MOST_IN_MEAN
        return self.tokens == slots

    def codes(self, dim: int) -> torch.Tensor:
        """The codes of all tokens, int8 `(rows, kv_heads, slots, head_dim)`."""
        return unpack(self.packed[:, :, : self.tokens], self.bits, dim)

    def forget_from(self, first: int) -> None:
        """Note that the keys from slot `first` on have to be encoded again."""
        self.tokens = 0 if first < self._last_of_mean else min(self.tokens, first)

    @property
    def capacity(self) -> int:
        """Slots that there is storage for."""
        return self.scale.shape[2] if self.scale.dim() > 1 else 0

    @property
    def stores(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Storage of codes, scales and means, which stays where it is until there are more slots or other rows."""
        return self.packed, self.scale, self.mean

    def reserve(self, keys: torch.Tensor, capacity: int) -> None:
        """Allocate storage for the codes of `capacity` keys of the shape and dtype of `keys`."""
        if self.capacity < capacity:
            self._grow(keys, capacity)

    def mapped(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "SketchIndex":
        """The index of a layer whose rows were moved or repeated."""
        moved = SketchIndex(self.bits)
        moved.tokens, moved._last_of_mean = self.tokens, self._last_of_mean
        if self.capacity:
            parts = (self.packed, self.scale, self.mean, self._in_mean)
            moved.packed, moved.scale, moved.mean, moved._in_mean = map(function, parts)
        return moved

    def _grow(self, keys: torch.Tensor, capacity: int) -> None:
        rows, heads, _, dim = keys.shape
        packed = torch.zeros(
            rows, heads, capacity, bytes_per_key(dim, self.bits), dtype=torch.uint8, device=keys.device
        )
        scale = keys.new_zeros(rows, heads, capacity)
        if self.mean.dim() == 1:
            self.mean = torch.zeros(rows, heads, 1, dim, device=keys.device)
        if self.tokens:
            packed[:, :, : self.tokens] = self.packed[:, :, : self.tokens]
            scale[:, :, : self.tokens] = self.scale[:, :, : self.tokens]
        self.packed, self.scale = packed, scale
