# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Many rollouts of one text over a single copy of its keys and values.

The rollouts of a block share its prefix. What they write themselves is stored per row, from the last page boundary on,
so that pages are the same as in a repeated cache:

    prefix, one copy a block    | page | page | page |
    suffix, one a rollout                            | rest of the prefix, own tokens ...

Queries of all rollouts of a block look at the prefix in one matrix product. Selection works by masking: all prefix
keys are scored anyway, in a product that the rollouts share, and nothing is gathered.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .paged_layer import PagedLayer


@dataclass(frozen=True)
class Prefix:
    """Whole pages that the rollouts of a block share.

    Args:
        keys (`torch.Tensor` of shape `(blocks, kv_heads, tokens, head_dim)`): Keys; a view.
        values (`torch.Tensor` of shape `(blocks, kv_heads, tokens, head_dim)`): Values; a view.
        bounds (`torch.Tensor` of shape `(blocks, kv_heads, pages, 2 * head_dim)`): Channel-wise maxima and minima of
            the pages, side by side.
        visible_pages (`torch.Tensor` of shape `(repeats,)`, *optional*): Pages that the rollouts of a block see, where
            they differ.
    """

    keys: torch.Tensor
    values: torch.Tensor
    bounds: torch.Tensor
    visible_pages: torch.Tensor | None = None

    @property
    def length(self) -> int:
        return self.keys.shape[2]


class SharedPrefixLayer(PagedLayer):
    """A cache layer whose rows share the prefix of their block; its own storage holds the suffixes.

    Args:
        source ([`PagedLayer`]): Layer of the blocks, without padding. It must stay as it is while this one is used.
        lengths (`Sequence[int]`): Tokens of `source` that rollouts start from. Several lengths must be whole pages
            apart: every suffix then begins with as many tokens.
        repeats (`int`): Rollouts from every length. Those of a block are adjacent rows, and among them those of a
            length.
    """

    growth_slots = 16

    def __init__(self, source: PagedLayer, lengths: Sequence[int], repeats: int):
        super().__init__(source.page_size)
        size = source.page_size
        if len({length % size for length in lengths}) != 1:
            raise ValueError(f"Rollouts can only start whole pages of {size} tokens apart, not at {list(lengths)}.")
        shared = max(lengths) // size * size
        pages = shared // size
        start = torch.zeros(source.keys.shape[0], dtype=torch.long, device=source.keys.device)
        upper, lower = source.page_index(start, (0, 0))
        self.prefix = Prefix(
            source.keys[:, :, :shared],
            source.values[:, :, :shared],
            torch.cat([upper[:, :, :pages], lower[:, :, :pages]], dim=-1),
            _visible_pages(lengths, size, repeats, start.device),
        )
        self.repeats = repeats * len(lengths)
        rest = [
            torch.stack([x[:, :, length // size * size : length] for length in lengths], dim=1).flatten(0, 1)
            for x in (source.keys, source.values)
        ]
        super().update(*(x.repeat_interleave(repeats, dim=0) for x in rest))

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
