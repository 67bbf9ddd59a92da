# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A key-value cache layer that grows in place and has an index of its pages.

The page index holds the maximum and the minimum of every channel over each page. It is updated when a step needs it:
one page per new token, all pages after a prefill.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..selection.pages import page_bounds
from .sketch_index import SketchIndex
from .stored_layer import StoredLayer


@dataclass(frozen=True)
class DevicePlaces:
    """Where tokens are appended if only the device knows how many there are.

    Args:
        first_key (`torch.Tensor` of shape `(rows,)`): Slot of every row's first real token.
        count (`torch.Tensor` of shape `(rows,)`): Keys of every row, the new ones included.
        index_bits (`int`, *optional*): Bits of the codes that are kept for single tokens; `None` for the page index.
    """

    first_key: torch.Tensor
    count: torch.Tensor
    index_bits: int | None


class PagedLayer(StoredLayer):
    """A full-attention cache layer with preallocated storage, and a page index that is updated when it is needed.

    `keys` and `values` are views of the storage, of shape `(rows, kv_heads, length, head_dim)`.

    Args:
        page_size (`int`): Keys in a page.
        kv_dtype (`torch.dtype`, *optional*): See [`StoredLayer`].
    """

    def __init__(self, page_size: int, kv_dtype: torch.dtype | None = None):
        super().__init__(kv_dtype)
        self.page_size = page_size
        self._upper = self._lower = torch.empty(0)
        self._page_capacity = 0
        self._indexed = 0
        self._sketch: SketchIndex | None = None
        self.append_at: DevicePlaces | None = None

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        """Append keys and values of shape `(rows, kv_heads, new, head_dim)` and return all of them."""
        if self.append_at is not None:
            self._leave_inference_mode()
            return self._append_on_device(key_states, value_states, self.append_at)
        self.store(key_states, value_states)
        return self.given_to_base(self.keys, self.values)

    def __getstate__(self) -> dict[str, Any]:
        """Keys and values without spare room, and no page index: it is made again when it is needed."""
        state = super().__getstate__()
        state.update(_upper=torch.empty(0), _lower=torch.empty(0), _page_capacity=0, _indexed=0, _sketch=None)
        return state

    def get_seq_length(self) -> int:
        return self.length

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last `-tokens_to_remove` tokens; a positive number is refused, as in transformers."""
        if tokens_to_remove > 0:
            raise ValueError(f"`crop` takes the number of tokens to remove as a negative number: {tokens_to_remove}.")
        if tokens_to_remove and self.is_initialized:
            self._set_length(max(0, self.length + tokens_to_remove))
            self.index_again(self.length)

    def give_back(self, number: int) -> None:
        """Undo a crop of tokens after which nothing was appended, for the first `number` of them."""
        self._set_length(self.length + number)

    def mark(self) -> int | dict[str, Any]:
        """What [`PagedLayer.take_back`] needs to undo appended tokens and a crop: the length, or all if it is empty.

        It refers to no storage. If the storage grows, the old one is therefore freed.
        """
        return self.length if self.is_initialized else dict(vars(self))

    def take_back(self, mark: int | dict[str, Any]) -> None:
        """Give the layer back the tokens that it had; their keys and values are still in its storage.

        What a crop had removed must be written back, see [`PagedLayer.write_back`].
        """
        if isinstance(mark, dict):
            self.__dict__.clear()
            self.__dict__.update(mark)
        else:
            self.append_at = None
            self._forget_pages()  # the index may have been half-way through growing
            self._set_length(mark)

    def index_again(self, first: int) -> None:
        """Note that the pages of the tokens from `first` on have to be indexed again."""
        self._indexed = max(0, min(self._indexed, first + 1 - self.page_size))
        if self._sketch is not None:
            self._sketch.forget_from(first)

    def reset(self) -> None:
        self._forget_pages()
        super().reset()

    def flat_store(self) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Keys and values as `(rows * kv_heads * stride, head_dim)`, and the stride between key-value heads."""
        return self._key_store.flatten(0, 2), self._value_store.flatten(0, 2), self._key_store.shape[2]

    def page_store(self) -> tuple[torch.Tensor, torch.Tensor, int, int]:
        """Storage of the page index, which may be out of date.

        A caller that updates it for all tokens must then call [`PagedLayer.mark_indexed`].

        Returns:
            `tuple[torch.Tensor, torch.Tensor, int, int]`: Maxima and minima, each of shape
            `(rows, kv_heads, capacity, head_dim)`, their capacity in pages, and the number of tokens indexed so far.
        """
        pages = -(-self.length // self.page_size)
        if self._page_capacity < pages:
            self._grow_pages(pages)
        return self._upper, self._lower, self._page_capacity, self._indexed

    def mark_indexed(self) -> None:
        """Note that the page index is up to date for all tokens."""
        self._indexed = self.length

    def page_stores(self, first_key: torch.Tensor, padding: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Storage of maxima and minima, up to date, and the number of pages that may hold keys.

        While tokens are appended on the device, the host does not know how many there are. The number of pages is then
        the capacity.

        Args:
            first_key (`torch.Tensor` of shape `(rows,)`): As of [`PagedLayer.page_index`].
            padding (`tuple[int, int]`): As of [`PagedLayer.page_index`].
        """
        if self.append_at is None:
            pages = self.page_index(first_key, padding)[0].shape[2]
        else:
            pages = self._page_capacity
        return self._upper, self._lower, pages

    def reserve(self, tokens: int, index_bits: int | None = None) -> None:
        """Allocate storage for `tokens` tokens in all, and for their pages or, with `index_bits`, for their codes."""
        if tokens > self._key_store.shape[2]:
            self._move(tokens)
        if index_bits is not None:
            self._sketch_in(index_bits).reserve(self._key_store, self._key_store.shape[2])
        elif self._page_capacity < -(-self._key_store.shape[2] // self.page_size):
            self._grow_pages(0)

    def update_index(self, first_key: torch.Tensor, padding: tuple[int, int], index_bits: int | None) -> None:
        """Bring the page index, or the codes of `index_bits` bits, up to date for all tokens."""
        if index_bits is None:
            self.page_index(first_key, padding)
        else:
            self.sketch(index_bits, first_key, padding)

    def index_stores(self, index_bits: int | None) -> tuple[torch.Tensor, ...]:
        """Storage of the page index, or of codes of `index_bits` bits; empty if there are none."""
        if index_bits is None:
            return self._upper, self._lower
        return () if self._sketch is None or self._sketch.bits != index_bits else self._sketch.stores

    def note_appended(self, length: int, index_bits: int | None = None) -> None:
        """Note that tokens were appended on the device, and indexed there, `length` of them in all."""
        self._set_length(length)
        if index_bits is None:
            self._indexed = length
        else:
            self._sketch_in(index_bits).tokens = length

    def _append_on_device(self, key: torch.Tensor, value: torch.Tensor, places: DevicePlaces):
        from ..kernels.cuda.pages import append_tokens
        from ..kernels.cuda.sketch_index import encode_tokens

        first_key, count, bits = places.first_key, places.count, places.index_bits
        pages = (None, None) if bits is not None else (self._upper, self._lower)
        append_tokens(key, value, self._key_store, self._value_store, *pages, first_key, count, self.page_size)
        if bits is not None:
            packed, scale, mean = self._sketch_in(bits).stores
            encode_tokens(self._key_store, mean, packed, scale, first_key, count, key.shape[2], bits)
        return self._key_store, self._value_store

    def page_index(self, first_key: torch.Tensor, padding: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Channel-wise maximum and minimum of every page, of shape `(rows, kv_heads, pages, head_dim)`.

        Args:
            first_key (`torch.Tensor` of shape `(rows,)`): Slot of every row's first real token; page 0 begins there.
            padding (`tuple[int, int]`): Smallest and largest value of `first_key`, known to the host.
        """
        least, most = padding
        pages = -(-(self.length - least) // self.page_size)
        if self._page_capacity < pages:
            self._grow_pages(pages)
        if self._indexed == self.length - 1 and least == most:
            self._index_one_token(least)
        elif self._indexed < self.length:
            self._index_from(max(0, (self._indexed - most) // self.page_size), pages, first_key)
        self._indexed = self.length
        return self._upper[:, :, :pages], self._lower[:, :, :pages]

    @property
    def made_sketch(self) -> SketchIndex | None:
        """The keys in a few bits, if there are any; they may be out of date."""
        return self._sketch

    def sketch(
        self,
        bits: int,
        first_key: torch.Tensor,
        padding: tuple[int, int],
        most: int = 0,
        keeps_means: bool = False,
    ) -> SketchIndex:
        """The keys in a few bits, up to date but for at most `most` tokens, which the caller encodes.

        Args:
            bits (`int`): Bits of a channel.
            first_key (`torch.Tensor` of shape `(rows,)`): As of [`PagedLayer.page_index`].
            padding (`tuple[int, int]`): As of [`PagedLayer.page_index`].
            most (`int`, *optional*, defaults to 0): Tokens that may be left out.
            keeps_means (`bool`, *optional*, defaults to `False`): As of [`SketchIndex.update`].

        While tokens are appended on the device, they are encoded there, and nothing is left to do.
        """
        index = self._sketch_in(bits)
        if self.append_at is None and not index.is_complete(self.length, padding):
            index.update(self.keys, self._key_store.shape[2], first_key, padding, most, keeps_means)
        return index

    def _sketch_in(self, bits: int) -> SketchIndex:
        """The index of keys in a number of bits, up to date or not."""
        if self._sketch is None or self._sketch.bits != bits:
            self._sketch = SketchIndex(bits)
        return self._sketch

    def _index_one_token(self, padding: int) -> None:
        page, place = divmod(self.length - 1 - padding, self.page_size)
        key = self.keys[:, :, -1]
        if place == 0:
            self._upper[:, :, page], self._lower[:, :, page] = key, key
        else:
            self._upper[:, :, page] = torch.maximum(self._upper[:, :, page], key)
            self._lower[:, :, page] = torch.minimum(self._lower[:, :, page], key)

    def _index_from(self, page: int, pages: int, first_key: torch.Tensor) -> None:
        offset = first_key + page * self.page_size
        upper, lower = page_bounds(self.keys, self.page_size, offset, first_key, pages - page)
        self._upper[:, :, page:pages], self._lower[:, :, page:pages] = upper, lower

    def _set_length(self, length: int) -> None:
        self._set_slots(0, length)

    def _grow_pages(self, needed: int) -> None:
        rows, heads, slots, dim = self._key_store.shape
        capacity = max(needed, -(-slots // self.page_size))
        larger = []
        for old in (self._upper, self._lower):
            new = self._key_store.new_zeros(rows, heads, capacity, dim)
            if self._page_capacity:
                new[:, :, : self._page_capacity] = old
            larger.append(new)
        (self._upper, self._lower), self._page_capacity = larger, capacity

    def _forget_pages(self) -> None:
        self._upper = self._lower = torch.empty(0)
        self._page_capacity = self._indexed = 0
        self._sketch = None

    def _map_rows(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super()._map_rows(function)
        if self._page_capacity:
            self._upper, self._lower = function(self._upper), function(self._lower)
        if self._sketch is not None:
            self._sketch = self._sketch.mapped(function)
