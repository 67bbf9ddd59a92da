# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The policy's keys and values of an episode, with room for its later steps.

A step of the policy by compiled code writes its keys and values there, where `torch.cat` would copy all of them.
"""

from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class Room:
    """Memory of a layer.

    Args:
        keys (`torch.Tensor` of shape `(rows, heads, capacity, head_dim)`): For keys.
        values (`torch.Tensor` of the same shape): For values.
        used (`int`): Steps that have been written. Whoever continues from fewer needs a room of their own, since
            another cache may still refer to the later ones.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, used: int):
        self.keys, self.values, self.used = keys, values, used
        self.addresses = keys.data_ptr(), values.data_ptr(), keys.shape[2]
        """Of keys and values, and the capacity, for compiled code."""


class EpisodeLayer(DynamicLayer):
    """A layer of an [`EpisodeCache`]: `keys` and `values` are what it holds, as in every dynamic layer."""

    keys: torch.Tensor
    values: torch.Tensor
    _room: Room | None = None

    def append_step(self, rows: int, heads: int, dim: int, steps: int) -> Room:
        """Room in which the keys and values of the next step are to be written, after those of the earlier ones.

        Args:
            rows (`int`): Rows.
            heads (`int`): Heads.
            dim (`int`): Numbers of a head.
            steps (`int`): Steps of an episode.
        """
        past, room = self.get_seq_length(), self._room
        if room is None or room.used != past or (past and not self._is_in(room)) or past >= room.addresses[2]:
            keys, values = (torch.zeros(rows, heads, max(steps, past + 1), dim) for _ in range(2))
            if past:
                keys[:, :, :past], values[:, :, :past] = self.keys, self.values
            room = self._room = Room(keys, values, past)
        if not self.is_initialized:
            self.lazy_initialization(room.keys, room.values)
        room.used = past + 1
        self.keys, self.values = room.keys[:, :, : room.used], room.values[:, :, : room.used]
        return room

    def _is_in(self, room: Room) -> bool:
        """Whether the keys are those in a room, and not what a method of this layer has made of them."""
        same = self.keys.data_ptr() == room.addresses[0] and self.values.data_ptr() == room.addresses[1]
        return same and self.keys.shape[0] == room.keys.shape[0]

    def __getstate__(self) -> dict[str, Any]:
        """Keys and values without spare room."""
        state = {**vars(self), "_room": None}
        if self.is_initialized:
            state.update(keys=self.keys.clone(), values=self.values.clone())
        return state

    def reset(self) -> None:
        self._room = None
        super().reset()


class EpisodeCache(DynamicCache):
    """The cache of a policy: a `DynamicCache` whose layers have room for an episode."""

    def __init__(self) -> None:
        super().__init__()
        self.layer_class_to_replicate = EpisodeLayer

    def layer(self, number: int) -> EpisodeLayer | None:
        """A layer, made when it is first asked for; `None` if it is of another class."""
        while len(self.layers) <= number:
            self.layers.append(EpisodeLayer())
        layer = self.layers[number]
        return layer if isinstance(layer, EpisodeLayer) else None
