# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Rows of any length, padded so that their decode steps begin in the same column."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class AlignedRows:
    """Rows for scoring, padded so that their contexts end in the same column.

    Args:
        tokens (`torch.LongTensor` of shape `(rows, context + steps + 1)`): Token ids.
        padding (`torch.LongTensor` of shape `(rows,)`): Number of padding tokens on the left of every row.
        context (`int`): Columns before the first decode step.
        steps (`torch.LongTensor` of shape `(rows,)`): Decode steps of every row.
        further (`dict[str, Any]`, *optional*): Arguments for the base beside tokens and mask, such as images.
    """

    tokens: torch.Tensor
    padding: torch.Tensor
    context: int
    steps: torch.Tensor
    further: Mapping[str, Any] = field(default_factory=dict)

    @property
    def step_mask(self) -> torch.Tensor:
        """A mask of the steps that each row has, `(rows, steps)`."""
        width = self.tokens.shape[1] - self.context - 1
        return torch.arange(width, device=self.tokens.device) < self.steps[:, None]

    @property
    def attention_mask(self) -> torch.Tensor | None:
        """1 for real tokens `(rows, columns)`, `None` if no row is padded on the left."""
        if not bool(self.padding.any()):
            return None
        return (torch.arange(self.tokens.shape[1], device=self.tokens.device) >= self.padding[:, None]).long()

    def merge(self, end: int, among: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Group rows that are the same before column `end`, and return the first row of every group.

        Args:
            end (`int`): Number of columns to compare.
            among (`torch.LongTensor` of shape `(some,)`): Rows to consider, ascending.

        Returns:
            Two `torch.LongTensor`: the first rows, ascending, of shape `(groups,)`, and the group of every row in
            `among`, of shape `(some,)`.
        """
        begins = torch.cat([self.padding[:, None], self.tokens[:, :end]], dim=1)[among]
        _, group = begins.unique(dim=0, return_inverse=True)
        first = torch.full_like(among, len(self.tokens)).scatter_reduce(0, group, among, "amin")[group]
        leaders = first.unique()
        return leaders, torch.searchsorted(leaders, first)


def align_rows(
    input_ids: torch.Tensor, attention_mask: torch.Tensor | None, context_length: int | Sequence[int] | torch.Tensor
) -> AlignedRows:
    """Pad rows so that their contexts end in the same column.

    Args:
        input_ids (`torch.LongTensor` of shape `(rows, length)`): Tokens, padded on either side.
        attention_mask (`torch.Tensor` of shape `(rows, length)`, *optional*): 0 marks padding.
        context_length (`int` or one per row): Real tokens that are processed densely.

    Raises:
        ValueError: if a row has less than two tokens after its context, or the lengths do not match the rows.
    """
    if input_ids.dim() != 2 or input_ids.shape[1] == 0:
        raise ValueError(f"`input_ids` must have shape (rows, length), got {tuple(input_ids.shape)}.")
    rows, device = len(input_ids), input_ids.device
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    if mask.shape != input_ids.shape:
        raise ValueError(f"`attention_mask` has shape {tuple(mask.shape)}, `input_ids` {tuple(input_ids.shape)}.")
    if bool((mask.bool().int().diff(dim=1, prepend=mask.new_zeros(rows, 1).int()) > 0).sum(dim=1).max() > 1):
        raise ValueError("`attention_mask` has a gap: padding may stand on either side of a row, not within.")
    contexts = torch.as_tensor(context_length).expand(rows).tolist() if _is_scalar(context_length) else None
    if contexts is None:
        contexts = [int(value) for value in context_length]  # type: ignore[union-attr]
    if len(contexts) != rows:
        raise ValueError(f"`context_length` has {len(contexts)} entries, but the input has {rows} rows.")
    real = [row[flag.bool()] for row, flag in zip(input_ids, mask, strict=True)]
    for index, (tokens, context) in enumerate(zip(real, contexts, strict=True)):
        if not 0 <= context <= len(tokens) - 2:
            raise ValueError(
                f"Row {index} has {len(tokens)} tokens, so `context_length` must lie in 0..{len(tokens) - 2} (a token "
                f"to process and one to score), got {context}."
            )
    widest, longest = max(contexts), max(len(t) - c for t, c in zip(real, contexts, strict=True))
    aligned = input_ids.new_zeros(rows, widest + longest)
    for index, (tokens, context) in enumerate(zip(real, contexts, strict=True)):
        aligned[index, widest - context : widest - context + len(tokens)] = tokens
    padding = torch.tensor([widest - context for context in contexts], device=device)
    steps = torch.tensor([len(t) - c - 1 for t, c in zip(real, contexts, strict=True)], device=device)
    return AlignedRows(aligned, padding, widest, steps)


def _is_scalar(value: int | Sequence[int] | torch.Tensor) -> bool:
    return isinstance(value, int) or (isinstance(value, torch.Tensor) and value.dim() == 0)
