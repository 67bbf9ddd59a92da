# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The settings of a selection, and what a selection is."""

from dataclasses import dataclass

import torch


CRITERIA = ("quest", "relevancy", "recency")


PAGE_SELECTIONS = ("head", "group")


@dataclass(frozen=True)
class SelectionRule:
    """The settings of a selection that do not change from step to step.

    Args:
        criterion (`str`): `"quest"`, `"relevancy"` or `"recency"`.
        page_size (`int`): Keys in a page (`quest`).
        page_selection (`str`): `"head"` chooses per query head; `"group"` once per key-value head, by the sum of the
            scores of its query heads, so that the bytes read are really `token_keep` of the cache.
        sink_tokens (`int`): First tokens that `relevancy` and `recency` always keep.
        window_tokens (`int`): Width of the recent window that they always keep.
    """

    criterion: str = "quest"
    page_size: int = 8
    page_selection: str = "head"
    sink_tokens: int = 4
    window_tokens: int = 2

    def is_controllable(self, count: torch.Tensor) -> torch.Tensor:
        """Whether a step that sees `count` keys (itself included) is under control, of the shape of `count`."""
        return count > self.sink_tokens + self.window_tokens + 1

    def page_fill(self, count: torch.Tensor) -> torch.Tensor:
        """Share of its page that is filled by a step's own token and those before it, of the shape of `count`.

        The fuller the page, the more it resembles the others in the bound that ranks it: an early token of a page is
        at greater risk of not being read, by itself and by those after it.
        """
        return ((count - 1) % self.page_size + 1) / self.page_size


@dataclass(frozen=True)
class Selection:
    """Keys to read, of shape `(rows, H, m)`: their ranks, and which of the `m` places are in use.

    A rank out of `[first valid, count)` is never in use; `H` is 1 where all heads read the same keys.
    """

    ranks: torch.Tensor
    in_use: torch.Tensor
