# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The share of the bytes of dense steps that the rows of a call have read."""

from dataclasses import dataclass, field
from typing import Protocol

import torch

from ..controllers.base import Controller
from .compute_costs import ComputeCosts
from .counted_model import CountedModel


class CountedCall(Protocol):
    """What is counted of the options of a call: a [`DecodeOptions`]."""

    @property
    def bits_backend(self) -> str:
        """See [`StepPlan`]."""

    @property
    def kv_refresh(self) -> bool | str:
        """Which episodes are refreshed."""

    @property
    def controller(self) -> Controller | None:
        """`None` for the policy, whose own bytes count."""


@dataclass(frozen=True)
class RowShares:
    """Counts the bytes of rows over those of as many dense steps at their contexts, as [`ComputeCosts`] does.

    KV refreshes, the index of the keys, the scales of planes and the policy are counted. As in a sweep a refresh
    counts for the steps of its own episode, so also for those of the last one, which is refreshed when the text goes
    on.

    Args:
        model ([`CountedModel`]): Base and policy.
        bits_backend (`str`): Of the call.
        kv_refresh (`bool` or `"auto"`): Of the call.
        with_policy (`bool`): Whether the policy chooses the actions.
        apart (`int`, *optional*, defaults to 64): Contexts are rounded up to multiples of it, so that their costs are
            counted once.
    """

    model: CountedModel
    bits_backend: str
    kv_refresh: bool | str
    with_policy: bool
    apart: int = 64
    known: dict[int, ComputeCosts] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, model: CountedModel, call: CountedCall, apart: int = 64) -> "RowShares":
        """For the rows of a call."""
        return cls(model, call.bits_backend, call.kv_refresh, call.controller is None, apart)

    def __call__(self, actions: torch.Tensor, contexts: torch.Tensor) -> torch.Tensor:
        """The share of every row.

        Args:
            actions (`torch.LongTensor` of shape `(rows, steps)`): Action ids, -1 where a row has no step.
            contexts (`torch.LongTensor` of shape `(rows,)`): Tokens before the first step, without padding.

        Returns:
            `torch.Tensor` of shape `(rows,)`: 1 for a row without steps.
        """
        rows = zip(actions.cpu(), contexts.tolist(), strict=True)
        return torch.tensor([self._of_row(row[row >= 0], context) for row, context in rows])

    def _of_row(self, taken: torch.Tensor, context: int) -> float:
        length = self.model.config.episode_length
        if len(taken) == 0:
            return 1.0
        middle = max(1, context) + max(0, len(taken) - length) // 2
        costs, read = self._costs(-(-middle // self.apart) * self.apart), 0.0
        for episode in taken.split(length):
            read += len(episode) * costs.per_token(episode[None], self.with_policy)["bytes_per_token"]
        return read / (len(taken) * costs.dense_bytes)

    def _costs(self, context: int) -> ComputeCosts:
        if context not in self.known:
            self.known[context] = ComputeCosts.of(self.model, context, self.bits_backend, self.kv_refresh)
        return self.known[context]
