# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The base class of criteria, and the registry of all criteria by name.

A [`Criterion`] defines how keys are selected, what that costs, and whether the fast paths compute the same selection.
Its name is the value of `SOLConfig(criterion=...)`.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..registry import Registry
from .candidates import Candidates
from .refresh_gain import RefreshGain
from .rule import Selection, SelectionRule


ROUNDING = 1e-6
"""Tolerance in `ceil(token_keep * keys)`, so that a rounding error of `token_keep` does not add a key."""

GAIN_OF_QUEST = RefreshGain(((0.1, 0.28), (0.2, 0.1), (0.3, 0.066), (0.5, 0.021), (1.0, 0.0)))
"""Of `quest` as published, which loses most; measured, see docs/performance.md."""


@dataclass(frozen=True)
class SelectionCost:
    """How much one layer reads of its cache for one token, and how much it computes.

    Args:
        attended (`int`): Keys that a query head attends to.
        moved (`float`): Pairs of key and value that a key-value head reads, for the selection and for attention. A
            key without its value counts one half.
        scored (`float`): Vectors of the size of a key with which a query head is multiplied in order to select. The
            products of attention itself are not included.
        index_bits (`float`): Bits per channel that a key-value head reads of an index of single tokens, added up over
            the tokens.
        index_values (`float`): Numbers in the dtype of the keys that a key-value head reads beside them.
        index_means (`float`): Vectors of the size of a key, in float32, that it reads for the code of the new key.
    """

    attended: int
    moved: float
    scored: float = 0.0
    index_bits: float = 0.0
    index_values: float = 0.0
    index_means: float = 0.0


class Criterion:
    """How a step selects the cached keys that it reads.

    A subclass defines [`Criterion.select`], and overrides the other attributes and methods where it differs from the
    defaults.

    Class attributes:
        chooses_pages (`bool`): Whether whole pages are read, chosen by the bounds in the cache's page index. Set by
            [`PageCriterion`].
        has_kernels (`bool`): Whether the compiled CPU kernel and the Triton kernels select the same keys. They score
            pages by their bounds as `quest` does.
        ranks_codes (`bool`): Whether single tokens are ranked by the codes of their keys as `sketch` does, so that the
            Triton kernels for single tokens select the same keys.
        heads_may_differ (`bool`): Whether query heads that share a key-value head may select different keys, under
            `selection="head"`.
        selections (`tuple[str, ...]`): Values of `selection` that it can be used with.
        prefix_to_stagger (`int`, *optional*): Rows over a shared prefix may see different lengths of it, if these are
            at least so many tokens: the criterion then asks [`Candidates`] for `places`, `counts` and `slots_at`.
            `None` if it does not.
    """

    chooses_pages: ClassVar[bool] = False
    has_kernels: ClassVar[bool] = False
    ranks_codes: ClassVar[bool] = False
    heads_may_differ: ClassVar[bool] = True
    selections: ClassVar[tuple[str, ...]] = ("head", "group")
    prefix_to_stagger: ClassVar[int | None] = None

    def check(self, rule: SelectionRule) -> None:
        """Raise a ValueError for settings that this criterion cannot be used with."""
        if rule.selection not in self.selections:
            raise ValueError(
                f"`selection` must be one of {', '.join(self.selections)} with the criterion `{rule.criterion}`, got "
                f"{rule.selection!r}."
            )
        if rule.anchor_pages and not self.chooses_pages:
            raise ValueError(
                f"`anchor_pages` needs pages, as criterion `quest` has, got {rule.criterion!r}, which always reads "
                "`sink_tokens` and `window_tokens`."
            )

    def select(self, candidates: Candidates, token_keep: torch.Tensor, rule: SelectionRule) -> Selection:
        """The keys that a step reads: a pure function of its arguments.

        The selection of a row must not depend on other rows. On an accelerator no values may be copied to the host.

        Args:
            candidates ([`Candidates`]): Queries and cached keys.
            token_keep (`torch.Tensor` of shape `(rows,)`): Fraction of the keys to read, in (0, 1].
            rule ([`SelectionRule`]): Settings.
        """
        raise NotImplementedError

    def mask(self, candidates: Candidates, token_keep: torch.Tensor, rule: SelectionRule) -> torch.Tensor:
        """The selection of [`Criterion.select`] as a mask `(rows, H, slots)`."""
        return candidates.mask_of(self.select(candidates, token_keep, rule))

    def has_token_kernel(self, rule: SelectionRule) -> bool:
        """Whether the compiled CPU kernel for single tokens selects the same keys under these settings."""
        return False

    def tokens_wanted(self, rule: SelectionRule, token_keep: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
        """Number of keys `(rows,)` that a key-value head reads on average, for that kernel.

        Args:
            rule ([`SelectionRule`]): Settings.
            token_keep (`torch.Tensor` of shape `(rows,)`): Fraction of the keys to read.
            count (`torch.Tensor` of shape `(rows,)`): Keys of every row.
        """
        raise NotImplementedError

    def keys_read(self, rule: SelectionRule, token_keep: float, keys: int) -> int:
        """How many of `keys` keys (its own included) a query head reads; by default `ceil(token_keep * keys)`."""
        return min(keys, max(1, math.ceil(token_keep * keys - ROUNDING)))

    def reads_all(self, rule: SelectionRule, token_keep: float, keys: int) -> bool:
        """Whether a step reads all of its `keys` keys, as all steps of a short text may."""
        return keys <= rule.short_text_tokens or self.keys_read(rule, token_keep, keys) >= keys

    def refresh_gain(self, rule: SelectionRule) -> RefreshGain:
        """What a KV refresh gains after steps at the levels of `token_keep`; by default as much as with `quest`.

        With `kv_refresh="auto"`, it decides with the gains of the other axes which episodes are refreshed.
        """
        return GAIN_OF_QUEST

    def cost(self, rule: SelectionRule, token_keep: float, keys: int, group: int) -> SelectionCost:
        """How much a layer reads and computes for one token; by default the selection itself costs nothing.

        Args:
            rule ([`SelectionRule`]): Settings.
            token_keep (`float`): Fraction of the keys to read, in (0, 1].
            keys (`int`): Keys that the step sees, its own included.
            group (`int`): Query heads that share a key-value head. If they may select different keys, the cost
                assumes that all of them do.
        """
        attended = self.keys_read(rule, token_keep, keys)
        choices = group if self.heads_may_differ and rule.selection == "head" else 1
        return SelectionCost(attended, moved=min(keys, attended * choices))


CRITERIA: Registry[Criterion] = Registry("criterion", package=f"{__package__}.criteria")
"""All criteria by name."""


def register_criterion(name: str, criterion: Criterion) -> Criterion:
    """Register a criterion, so that decoding, rollouts, sweeps and costs can use `SOLConfig(criterion=name)`.

    Args:
        name (`str`): The name.
        criterion ([`Criterion`]): An instance.

    Returns:
        [`Criterion`]: The criterion.

    Raises:
        TypeError: if it is not an instance of [`Criterion`].
        ValueError: if the name is taken.
    """
    if not isinstance(criterion, Criterion):
        raise TypeError(f"A criterion is an instance of `Criterion`, got {criterion!r}.")
    return CRITERIA.register(name, criterion)
