# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The input of a criterion: the queries of a step and the cached keys that they may read."""

import torch

from .pages import page_bounds
from .rule import Selection
from .sketch import channel_means, decode, encode, tokens_in_mean


class Candidates:
    """The keys of one layer that the queries of a step may read.

    Slots count from the beginning of the cache, padding included; the last slot is that of the step's own token.

    Args:
        query (`torch.Tensor` of shape `(rows, kv_heads, group, head_dim)`): Query heads by key-value head.
        keys (`torch.Tensor` of shape `(rows, kv_heads, slots, head_dim)`): Cached keys.
        page_origin (`torch.LongTensor` of shape `(rows,)`): Slot at which a row's page 0 begins. It is negative where
            the first keys of the page have left a sliding window.
        first_key (`torch.LongTensor` of shape `(rows,)`): First slot that holds a key of the row, not padding.
        page_size (`int`): Keys in a page.
        scaling (`float`, *optional*): Scale of the scores; `1 / sqrt(head_dim)` by default.
    """

    def __init__(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        page_origin: torch.Tensor,
        first_key: torch.Tensor,
        page_size: int,
        scaling: float | None = None,
    ):
        self.query, self.page_origin, self.first_key, self.page_size = query, page_origin, first_key, page_size
        self.scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        self._keys = keys

    @property
    def keys(self) -> torch.Tensor:
        """Cached keys, `(rows, kv_heads, slots, head_dim)`."""
        return self._keys

    @property
    def stored_keys(self) -> torch.Tensor:
        """The keys in the dtype in which they are stored, from which codes are made."""
        return self._keys

    @property
    def slots(self) -> int:
        """Number of slots, those of padding included."""
        return self._keys.shape[2]

    @property
    def counts(self) -> torch.Tensor:
        """Number of keys of every row, `(rows,)`."""
        return self.slots - self.first_key

    @property
    def places(self) -> torch.Tensor:
        """Place of every slot in the text of its row, `(rows, slots)`; negative where there is no key of the row."""
        return torch.arange(self.slots, device=self.first_key.device) - self.first_key[:, None]

    def slots_at(self, places: torch.Tensor) -> torch.Tensor:
        """The slots of some places in the text of every row, `(rows, n)` both."""
        return places + self.first_key[:, None]

    def exact_scores(self) -> torch.Tensor:
        """`q . k` of every query head and slot, `(rows, kv_heads, group, slots)`."""
        return self.query @ self.keys.transpose(2, 3)

    def coded_scores(self, bits: int) -> torch.Tensor:
        """`q . k` with the keys in a few bits, `(rows, kv_heads, group, slots)`, in float32.

        They lack a number that is the same for all keys of a query.

        Args:
            bits (`int`): Bits of a channel.
        """
        keys = self.stored_keys
        mean = channel_means(keys, self.first_key, tokens_in_mean(self.slots - self.first_key))
        return self.query.float() @ decode(*encode(keys, mean, bits)).transpose(2, 3)

    def page_bounds(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Channel-wise maximum and minimum of every page, each `(rows, kv_heads, pages, head_dim)`.

        There may be more pages than a row has keys for.
        """
        pages = self.slots // self.page_size + 2
        return page_bounds(self.keys, self.page_size, self.page_origin, self.first_key, pages)

    def slots_of(self, selection: Selection) -> tuple[torch.Tensor, torch.Tensor]:
        """Slots of a selection `(rows, H, m)`, and a mask of the same shape, true for the slots to read."""
        slot = selection.ranks + self.page_origin[:, None, None]
        return slot, selection.in_use & (slot >= self.first_key[:, None, None]) & (slot < self.slots)

    def mask_of(self, selection: Selection) -> torch.Tensor:
        """A selection as a mask `(rows, H, slots)`."""
        slot, in_use = self.slots_of(selection)
        # Unused entries may name a slot that is in use. They are written to one extra column, which is cut off.
        index = torch.where(in_use, slot, self.slots)
        mask = torch.zeros(*index.shape[:2], self.slots + 1, dtype=torch.bool, device=index.device)
        return mask.scatter_(2, index, True)[..., : self.slots]
