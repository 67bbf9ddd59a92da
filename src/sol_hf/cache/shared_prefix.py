# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Many rollouts of one text over a single copy of its keys and values.

The rollouts of a block share its prefix, up to the last page boundary. The tokens after it are stored per rollout, so
that pages are the same as in a repeated cache:

    prefix, one copy per block     | page | page | page |
    suffix, one per rollout                             | rest of the prefix, own tokens ...

The queries of all rollouts of a block are multiplied with the prefix in one matrix product.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..selection.sketch import MOST_IN_MEAN, channel_means, decode, encode, tokens_in_mean
from .paged_layer import PagedLayer


@dataclass(frozen=True)
class Prefix:
    """The whole pages that the rollouts of a block share.

    Args:
        keys (`torch.Tensor` of shape `(blocks, kv_heads, tokens, head_dim)`): Keys; a view.
        values (`torch.Tensor` of shape `(blocks, kv_heads, tokens, head_dim)`): Values; a view.
        bounds (`torch.Tensor` of shape `(blocks, kv_heads, pages, 2 * head_dim)`): Channel-wise maxima and minima of
            the pages, side by side.
        visible_pages (`torch.Tensor` of shape `(repeats,)`, *optional*): Number of pages that each rollout of a block
            sees; `None` if it is the same for all.
    """

    keys: torch.Tensor
    values: torch.Tensor
    bounds: torch.Tensor
    visible_pages: torch.Tensor | None = None

    @property
    def length(self) -> int:
        return self.keys.shape[2]


class SharedPrefixLayer(PagedLayer):
    """A cache layer whose rows share the prefix of their block. Its own storage holds the suffixes.

    Args:
        source ([`PagedLayer`]): Layer of the blocks, without padding. It must not change while this layer is used.
        lengths (`Sequence[int]`): Tokens of `source` after which rollouts start. Several lengths must be whole
            pages apart, so that all suffixes begin with the same number of tokens.
        repeats (`int`): Rollouts per length. The rollouts of a block are adjacent rows, in the order of `lengths`.
    """

    growth_slots = 16

    def __init__(self, source: PagedLayer, lengths: Sequence[int], repeats: int):
        super().__init__(source.page_size)
        self._rounds_to = source.kv_dtype
        size = source.page_size
        if len({length % size for length in lengths}) != 1:
            raise ValueError(f"Rollouts can only start whole pages of {size} tokens apart, not at {list(lengths)}.")
        shared = max(lengths) // size * size
        pages = shared // size
        first_key = torch.zeros(source.keys.shape[0], dtype=torch.long, device=source.keys.device)
        upper, lower = source.page_index(first_key, (0, 0))
        self.prefix = Prefix(
            source.keys[:, :, :shared].to(source.dtype),
            source.values[:, :, :shared].to(source.dtype),
            torch.cat([upper[:, :, :pages], lower[:, :, :pages]], dim=-1).to(source.dtype),
            _visible_pages(lengths, size, repeats, first_key.device),
        )
        self.repeats = repeats * len(lengths)
        self._coded_prefix: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        rest = [
            torch.stack([x[:, :, length // size * size : length] for length in lengths], dim=1).flatten(0, 1)
            for x in (source.keys.to(source.dtype), source.values.to(source.dtype))
        ]
        self.update(*(x.repeat_interleave(repeats, dim=0) for x in rest))

    def store(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Append keys and values, as rounded as those of the source: the storage has the dtype of the base."""
        dtype = key_states.dtype
        super().store(*(self.rounded(x).to(dtype) for x in (key_states, value_states)))

    def rounded(self, x: torch.Tensor) -> torch.Tensor:
        """A tensor in the dtype in which the source stores keys."""
        return x if self._rounds_to is None else x.to(self._rounds_to)

    def get_seq_length(self) -> int:
        return self.prefix.length + self.length

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last `-tokens_to_remove` tokens of every suffix.

        Raises:
            ValueError: for a positive number, or one that reaches into the shared prefix.
        """
        if -tokens_to_remove > self.length:
            raise ValueError(f"{-tokens_to_remove} tokens reach into the shared prefix: only {self.length} are own.")
        super().crop(tokens_to_remove)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        raise NotImplementedError("Rows over a shared prefix keep their order.")

    def batch_repeat_interleave(self, repeats: int) -> None:
        raise NotImplementedError("Rows over a shared prefix cannot be repeated.")

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        raise NotImplementedError("Rows over a shared prefix cannot be selected.")

    def coded_prefix(self, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The channel means of every block, `(blocks, kv_heads, 1, head_dim)`, and its prefix in a few bits.

        For prefixes of `MOST_IN_MEAN` tokens or more. The prefix has the shape of its keys, and lacks the means, see
        [`decode`].
        """
        if bits not in self._coded_prefix:
            prefix = self.rounded(self.prefix.keys)
            begin = torch.zeros(len(prefix), dtype=torch.long, device=prefix.device)
            mean = channel_means(prefix[:, :, :MOST_IN_MEAN], begin, tokens_in_mean(begin + prefix.shape[2]))
            self._coded_prefix[bits] = mean, decode(*encode(prefix, mean, bits))
        return self._coded_prefix[bits]

    def by_block(self, x: torch.Tensor) -> torch.Tensor:
        """`(rows, kv_heads, group, n)` to `(blocks, kv_heads, repeats * group, n)`."""
        rows, kv_heads, group, size = x.shape
        folded = x.view(rows // self.repeats, self.repeats, kv_heads, group, size).transpose(1, 2)
        return folded.reshape(rows // self.repeats, kv_heads, self.repeats * group, size)

    def by_row(self, x: torch.Tensor) -> torch.Tensor:
        """`(blocks, kv_heads, repeats * group, n)` to `(rows, kv_heads, group, n)`."""
        blocks, kv_heads, queries, size = x.shape
        group = queries // self.repeats
        unfolded = x.view(blocks, kv_heads, self.repeats, group, size).transpose(1, 2)
        return unfolded.reshape(blocks * self.repeats, kv_heads, group, size)


def _visible_pages(lengths: Sequence[int], size: int, repeats: int, device: torch.device) -> torch.Tensor | None:
    if len(lengths) == 1:
        return None
    return (torch.tensor(lengths, device=device) // size).repeat_interleave(repeats)
