# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A cache layer whose keys and values are written in place.

transformers' `DynamicLayer` copies all keys and values at every token (`torch.cat`). [`StoredLayer`] writes into
storage that is allocated ahead, so that a decode step writes one token. Compiled code reads keys and values there.

             ┌── dropped ──┐┌───────── kept ─────────┐┌──── spare ────┐
   slot       0 ..           first ..                  length ..        capacity

The storage may have a smaller dtype than the base. Keys and values are rounded when they are written, those of the
running forward included, and the base gets copies in its own dtype. Kernels read the storage itself.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from transformers.cache_utils import DynamicLayer


class StoredLayer(DynamicLayer):
    """A cache layer with preallocated storage of shape `(rows, kv_heads, capacity, head_dim)`.

    `keys` and `values` are views of the storage, of shape `(rows, kv_heads, kept, head_dim)`.

    Args:
        kv_dtype (`torch.dtype`, *optional*): Dtype of the storage; that of the base by default.

    Attributes:
        dtype (`torch.dtype`): That of the base.
        first (`int`): First slot whose key is kept.
        length (`int`): Slot after the last key.
    """

    growth_slots = 256
    _keys: Any
    _values: Any

    def __init__(self, kv_dtype: torch.dtype | None = None, **kwargs):
        super().__init__(**kwargs)
        self.kv_dtype = kv_dtype
        self._given: tuple[StorageWeakRef, StorageWeakRef] | None = None
        self.first = self.length = 0
        self._key_store = self._value_store = torch.empty(0)

    @property
    def keys(self) -> torch.Tensor:
        """The keys, a view of the storage that is made when it is needed; `None` before the first token."""
        if self._keys is None and self.is_initialized:
            self._keys = self._key_store[:, :, self.first : self.length]
        return self._keys

    @keys.setter
    def keys(self, keys: torch.Tensor | None) -> None:
        self._keys = keys

    @property
    def values(self) -> torch.Tensor:
        """The values, see `keys`."""
        if self._values is None and self.is_initialized:
            self._values = self._value_store[:, :, self.first : self.length]
        return self._values

    @values.setter
    def values(self, values: torch.Tensor | None) -> None:
        self._values = values

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self._key_store, self._value_store = (
            x.new_empty(*x.shape[:2], 0, x.shape[-1], dtype=self.kv_dtype or x.dtype)
            for x in (key_states, value_states)
        )

    def store(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Append keys and values of shape `(rows, kv_heads, new, head_dim)`.

        Raises:
            ValueError: for another number of rows.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if key_states.shape[0] != self._key_store.shape[0]:
            raise ValueError(f"The cache holds {self._key_store.shape[0]} rows, but got {key_states.shape[0]}.")
        self.append_slots(key_states.shape[-2])
        begin = self.length - key_states.shape[-2]
        self._key_store[:, :, begin : self.length] = key_states
        self._value_store[:, :, begin : self.length] = value_states

    def append_slots(self, number: int) -> None:
        """Make room for the keys and values of `number` more tokens, which the caller writes."""
        self._leave_inference_mode()
        if self.length + number > self._key_store.shape[2]:
            needed = self.length - self.first + number
            self._move(needed + max(self.growth_slots, needed // 4))
        self._set_slots(self.first, self.length + number)

    def __getstate__(self) -> dict[str, Any]:
        """Keys and values without spare room."""
        state = {**vars(self), "_given": None}
        if self.is_initialized:
            kept = self.length - self.first
            state.update(_key_store=self.keys.clone(), _value_store=self.values.clone(), _keys=None, _values=None)
            state.update(first=0, length=kept)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.is_initialized:
            self._set_slots(self.first, self.length)

    @property
    def rows(self) -> int:
        """Rows of the storage."""
        return len(self._key_store)

    @property
    def stored_dtype(self) -> torch.dtype:
        """Dtype of the storage."""
        return self._key_store.dtype

    def given_to_base(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Views of the storage in the dtype of the base: themselves, or copies, of which the layer keeps note."""
        if self.stored_dtype == self.dtype:
            return keys, values
        keys, values = keys.to(self.dtype), values.to(self.dtype)
        self._given = StorageWeakRef(keys.untyped_storage()), StorageWeakRef(values.untyped_storage())
        return keys, values

    def holds(self, keys: torch.Tensor, values: torch.Tensor | None = None) -> bool:
        """Whether tensors are what the base was given last, not computed from it."""
        if not self.is_initialized:
            return False
        pairs = list(zip((keys, values), self.stores(), self._given or (None, None), strict=True))
        return all(
            x.data_ptr() == store.data_ptr() + self.first * store.stride(2) * store.itemsize
            if given is None
            else StorageWeakRef(x.untyped_storage()) == given and x.storage_offset() == 0
            for x, store, given in pairs
            if x is not None
        )

    def stores(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Storage of keys and values, of shape `(rows, kv_heads, capacity, head_dim)`."""
        return self._key_store, self._value_store

    def slot_of(self, token: int) -> int:
        """The slot of a token of the text."""
        return self.length - (self.get_seq_length() - token)

    def write_back(self, token: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write keys and values `(rows, kv_heads, number, head_dim)` again, those from a token of the text on.

        Of tokens that the layer does not hold any more, nothing is written. Storage that was allocated in inference
        mode cannot have been overwritten outside of it.
        """
        if self._key_store.is_inference() and not torch.is_inference_mode_enabled():
            return
        number = min(keys.shape[2], self.get_seq_length() - token)
        if number > 0:
            begin = self.slot_of(token)
            self._key_store[:, :, begin : begin + number] = keys[:, :, :number]
            self._value_store[:, :, begin : begin + number] = values[:, :, :number]

    def reset(self) -> None:
        self.first = self.length = 0
        self._key_store = self._value_store = torch.empty(0)
        super().reset()

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        self._map_rows(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._map_rows(lambda x: x.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._map_rows(lambda x: x[indices, ...])

    def _set_slots(self, first: int, length: int) -> None:
        self.first, self.length, self._keys, self._values = first, length, None, None

    def _move(self, capacity: int) -> None:
        """Move what is kept to the beginning of new storage. The old one, to which a rollback may refer, is left."""
        kept, larger = self.length - self.first, []
        for old in self.stores():
            new = old.new_empty(*old.shape[:2], capacity, old.shape[-1])
            new[:, :, :kept] = old[:, :, self.first : self.length]
            larger.append(new)
        self._key_store, self._value_store = larger  # both or none, since memory may have run out
        self._set_slots(0, kept)

    def _leave_inference_mode(self) -> None:
        """Copy storage that was allocated in inference mode, which cannot be written to outside of it."""
        if self._key_store.is_inference() and not torch.is_inference_mode_enabled():
            self._map_rows(torch.clone)

    def _map_rows(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Replace the storage by what `function` makes of it."""
        if self.is_initialized:
            self._key_store, self._value_store = function(self._key_store), function(self._value_store)
            self._set_slots(self.first, self.length)
