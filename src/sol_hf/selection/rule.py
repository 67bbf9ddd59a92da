# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The settings of a selection, and its result."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class SelectionRule:
    """The settings of a selection that do not change from step to step.

    Args:
        criterion (`str`): Name of a registered [`Criterion`]: `"quest"`, `"relevancy"`, `"recency"`, or one that you
            have registered.
        page_size (`int`): Keys in a page, for criteria that choose whole pages.
        selection (`str`): Who chooses. `"head"`: every query head. `"group"`: every key-value head, by the scores of
            its query heads together, so that the bytes read are really `token_keep` of the cache. `"layer"`: all
            key-value heads of a layer together, so that those that need more read more.
        sink_tokens (`int`): First tokens that `relevancy`, `recency` and `sketch` always keep.
        window_tokens (`int`): Width of the recent window that they always keep.
        anchor_pages (`bool`): Whether criteria that choose whole pages always read the first page and the pages of
            the last `window_tokens + 2` tokens. They count among the pages of `token_keep`.
        index_bits (`int`): Bits of a channel in the index of `sketch`.
        short_text_tokens (`int`): Steps that see at most this many keys read all of them.
    """

    criterion: str = "quest"
    page_size: int = 8
    selection: str = "head"
    sink_tokens: int = 4
    window_tokens: int = 2
    anchor_pages: bool = False
    index_bits: int = 4
    short_text_tokens: int = 0

    @property
    def recent_tokens(self) -> int:
        """The last tokens, a step's own included, that are always read by criteria which keep a window."""
        return self.window_tokens + 2

    def is_controllable(self, count: Any) -> Any:
        """Whether a step that sees `count` keys (its own included), a number or a tensor, is controllable."""
        return count > self.sink_tokens + self.window_tokens + 1

    def reads_all(self, count: torch.Tensor) -> torch.Tensor:
        """Whether a step that sees `count` keys (its own included) reads them all, of the shape of `count`."""
        return count <= self.short_text_tokens

    def check_levels(self, token_keep: Sequence[float]) -> None:
        """Raise a ValueError if a step cannot read all keys under these levels of `token_keep`, but may have to."""
        if self.short_text_tokens and max(token_keep) < 1:
            raise ValueError(
                f"`short_text_tokens` ({self.short_text_tokens}) lets steps read all tokens: `token_keep` needs the "
                f"level 1.0, got {list(token_keep)}: add it, or set `short_text_tokens=0`."
            )

    def refuse_short_text(self, context_length: int) -> None:
        """Raise a ValueError if `token_keep` has no effect on the first step after a context."""
        if context_length < self.short_text_tokens:
            raise ValueError(
                f"After a context of {context_length} tokens `token_keep` has no effect: steps that see up to "
                f"{self.short_text_tokens} tokens read all of them (`short_text_tokens`). Give a context of "
                f"{self.short_text_tokens} tokens or more, or measure with `SOLConfig(short_text_tokens=0)`."
            )

    def page_fill(self, count: Any) -> Any:
        """Filled share of the page that a step's own token is in, that token included; `count` may be a tensor.

        The fewer keys a page has, the lower is its bound. A page with few keys is therefore less likely to be read.
        """
        return ((count - 1) % self.page_size + 1) / self.page_size


@dataclass(frozen=True)
class Selection:
    """The keys that a step reads.

    A key is given by its *rank*: its slot minus the row's `page_origin`, see [`Candidates`].

    Args:
        ranks (`torch.LongTensor` of shape `(rows, H, m)`): Ranks of the selected keys. `H` is the number of query
            heads, of key-value heads, or 1 where all heads read the same keys.
        in_use (`torch.BoolTensor` of shape `(rows, H, m)`): Which of the `m` entries count. A rank without a key in
            the row is ignored, even where `in_use` is set.
    """

    ranks: torch.Tensor
    in_use: torch.Tensor
