# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""States and embeddings of measured steps, made for the steps that are asked for.

Measured states are kept in bfloat16, as they are on disk, and embeddings are not kept at all. Only the steps of one
batch are in float32, on the device where they are used.
"""

from typing import Protocol

import torch
from torch import nn

from .counterfactuals import Counterfactuals


class Rows(Protocol):
    """Rows that are made when they are asked for; a `torch.Tensor` is one, too."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: torch.Tensor, /) -> torch.Tensor:
        """The rows at some indices `(n,)`, as `(n, features)`."""


class MeasuredSteps:
    """Inputs of a policy at measured steps.

    Args:
        measured ([`Counterfactuals`]): Steps of many blocks, on the CPU.
        embedding (`nn.Module`): The input embedding of the base.
    """

    def __init__(self, measured: Counterfactuals, embedding: nn.Module):
        self.blocks, self.length = measured.tokens.shape
        self.tokens, self.embedding = measured.tokens, embedding
        self.states = measured.hidden_states.to(torch.bfloat16)
        self.next_states = measured.next_states.to(torch.bfloat16)

    def dense(self, blocks: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        """States after a dense history, at blocks and steps of the same shape."""
        return self.states[blocks, steps]

    def sparse(self, blocks: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        """States after one cheap step; at the first step of a block the dense one."""
        before = self.next_states[blocks, (steps - 1).clamp(min=0)]
        return torch.where((steps == 0)[..., None], self.states[blocks, steps], before)

    @torch.no_grad()
    def embeddings(self, blocks: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        """Embeddings of the tokens that the steps process, in bfloat16 on the CPU."""
        device = next(self.embedding.parameters()).device
        return self.embedding(self.tokens[blocks, steps].to(device)).to("cpu", torch.bfloat16)


class StepRows:
    """State and embedding of every measured step as rows `(2 * steps, features)`: all dense ones, then all sparse.

    Args:
        measured ([`MeasuredSteps`]): The steps.
        device (`torch.device`): Where the rows are made.
    """

    def __init__(self, measured: MeasuredSteps, device: torch.device):
        self.measured, self.device = measured, device

    def __len__(self) -> int:
        return 2 * self.measured.blocks * self.measured.length

    def __getitem__(self, rows: torch.Tensor) -> torch.Tensor:
        measured, half = self.measured, len(self) // 2
        place = rows % half
        blocks, steps = place // measured.length, place % measured.length
        states = torch.where((rows < half)[:, None], measured.dense(blocks, steps), measured.sparse(blocks, steps))
        return torch.cat([states, measured.embeddings(blocks, steps)], dim=-1).to(self.device).float()
