# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The running episode: its steps, and what is remembered between them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch


RowFunction = Callable[[torch.Tensor], torch.Tensor]


@dataclass
class StepRecord:
    """One executed decode step: the token (or its embedding), the action, what it counts, and the state before it."""

    token: torch.Tensor
    action: torch.Tensor
    counted: torch.Tensor
    previous_hidden: torch.Tensor | None
    previous_digest: torch.Tensor | None = None

    def map_rows(self, function: RowFunction) -> None:
        self.token, self.action, self.counted = function(self.token), function(self.action), function(self.counted)
        self.previous_hidden = None if self.previous_hidden is None else function(self.previous_hidden)
        self.previous_digest = None if self.previous_digest is None else function(self.previous_digest)


@dataclass
class Episode:
    """The steps since the last dense forward.

    Args:
        hidden_state (`torch.Tensor` of shape `(rows, hidden_size)`, *optional*): What the LM head received for the
            last processed token; `None` before the first forward.
        steps (`list[StepRecord]`): The steps of this episode.
        controller_state (`dict[str, Any]`): What the controller remembers within an episode: tensors with one entry
            per row, or transformers caches.
        first_sparse (`int`, *optional*): The first step that wrote keys and values which a dense forward would not
            have written; those after it saw them. `None` if there is no such step.
        token_before (`torch.Tensor` of shape `(rows, 1)` or `(rows, 1, embedding_size)`, *optional*): The token before
            the first step.
        logits_digest (`torch.Tensor` of shape `(rows, ...)`, *optional*): What the controller keeps of the logits that
            the last processed token led to.
    """

    hidden_state: torch.Tensor | None = None
    steps: list[StepRecord] = field(default_factory=list)
    controller_state: dict[str, Any] = field(default_factory=dict)
    first_sparse: int | None = None
    token_before: torch.Tensor | None = None
    logits_digest: torch.Tensor | None = None

    @property
    def polluted(self) -> bool:
        """Whether the episode left anything in the cache that a dense forward would not have."""
        return self.first_sparse is not None

    @property
    def length(self) -> int:
        return len(self.steps)

    def map_rows(self, function: RowFunction) -> None:
        for step in self.steps:
            step.map_rows(function)
        for name in ("hidden_state", "token_before", "logits_digest"):
            value = getattr(self, name)
            setattr(self, name, None if value is None else function(value))

    def actions(self, rows: int, device: torch.device) -> torch.Tensor:
        """Actions so far, of shape `(rows, steps)`."""
        if not self.steps:
            return torch.empty(rows, 0, dtype=torch.long, device=device)
        return torch.stack([step.action for step in self.steps], dim=1)
