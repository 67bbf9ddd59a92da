# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The running episode: its steps, and the state between them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from .token_arguments import TokenArguments


RowFunction = Callable[[torch.Tensor], torch.Tensor]


def owned(tensor: torch.Tensor) -> torch.Tensor:
    """A copy: nobody else can change it, and no larger tensor is kept and saved with it."""
    return tensor.clone()


@dataclass
class StepRecord:
    """One executed decode step.

    Args:
        token (`torch.Tensor` of shape `(rows, 1)` or `(rows, 1, embedding_size)`): The token, or its embedding.
        action (`torch.LongTensor` of shape `(rows,)`): The action.
        counted (`torch.BoolTensor` of shape `(rows,)`): In which rows it counts.
        previous_hidden (`torch.Tensor` of shape `(rows, hidden_size)`, *optional*): The hidden state before it.
        previous_digest (`torch.Tensor` of shape `(rows, ...)`, *optional*): What the controller kept of the logits
            before it.
        along (`TokenArguments`): Further arguments of its forward, such as its position.
        spent (`torch.Tensor` of shape `(rows, axes)`, *optional*): What it spent, in ratio units.
        held (`torch.BoolTensor` of shape `(rows, axes)`, *optional*): Axes that it held at their largest level.
    """

    token: torch.Tensor
    action: torch.Tensor
    counted: torch.Tensor
    previous_hidden: torch.Tensor | None
    previous_digest: torch.Tensor | None = None
    along: TokenArguments = field(default_factory=dict)
    spent: torch.Tensor | None = None
    held: torch.Tensor | None = None

    def map_rows(self, function: RowFunction) -> "StepRecord":
        """The step after a function of tensors with the rows first."""
        return StepRecord(
            function(self.token),
            function(self.action),
            function(self.counted),
            None if self.previous_hidden is None else function(self.previous_hidden),
            None if self.previous_digest is None else function(self.previous_digest),
            {name: argument.map_rows(function) for name, argument in self.along.items()},
            None if self.spent is None else function(self.spent),
            None if self.held is None else function(self.held),
        )


@dataclass
class Episode:
    """The steps since the last dense forward.

    Args:
        hidden_state (`torch.Tensor` of shape `(rows, hidden_size)`, *optional*): The LM head's input for the last
            processed token; `None` before the first forward.
        steps (`list[StepRecord]`): The steps of this episode.
        controller_state (`dict[str, Any]`): The controller's state within an episode: tensors with one entry per row,
            or transformers caches.
        first_sparse (`int`, *optional*): The first step that wrote keys and values which differ from those of a dense
            forward. All later steps depend on them. `None` if there is no such step.
        token_before (`torch.Tensor` of shape `(rows, 1)` or `(rows, 1, embedding_size)`, *optional*): The token before
            the first step.
        logits_digest (`torch.Tensor` of shape `(rows, ...)`, *optional*): What the controller keeps of the logits
            after the last processed token.
    """

    hidden_state: torch.Tensor | None = None
    steps: list[StepRecord] = field(default_factory=list)
    controller_state: dict[str, Any] = field(default_factory=dict)
    first_sparse: int | None = None
    token_before: torch.Tensor | None = None
    logits_digest: torch.Tensor | None = None

    @property
    def polluted(self) -> bool:
        """Whether the episode wrote keys and values that differ from those of a dense forward."""
        return self.first_sparse is not None

    @property
    def length(self) -> int:
        return len(self.steps)

    def map_rows(self, function: RowFunction) -> None:
        self.steps = [step.map_rows(function) for step in self.steps]
        for name in ("hidden_state", "token_before", "logits_digest"):
            value = getattr(self, name)
            setattr(self, name, None if value is None else function(value))

    def actions(self, rows: int, device: torch.device) -> torch.Tensor:
        """Actions so far, of shape `(rows, steps)`."""
        if not self.steps:
            return torch.empty(rows, 0, dtype=torch.long, device=device)
        return torch.stack([step.action for step in self.steps], dim=1)
