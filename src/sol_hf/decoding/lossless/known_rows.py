# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Rows that are ahead of others: where one row takes another token than was drafted, the others need no new draft yet.

All rows of a batch are processed together, so what is ahead of them is dropped when the first row takes another token.
Of the others the next dense logits are known. They take the place of the logits of the new draft as long as it takes
the tokens that these rows had before.

    row 0    a b c | x          x: another token than was drafted; its next tokens are drafted anew
    row 1    d e f | g h i      as drafted; what follows is known up to i, and after it
"""

from dataclasses import dataclass

import torch

from .ahead import Ahead


@dataclass
class KnownRows:
    """What is known of rows that are ahead.

    Args:
        rows (`torch.BoolTensor` of shape `(rows,)`): These rows.
        tokens (`torch.LongTensor` of shape `(rows, left)`): Their tokens after the one that all rows have.
        logits (`torch.Tensor` of shape `(rows, left + 1, vocab_size)`): Dense logits before each, and after the last.
    """

    rows: torch.Tensor
    tokens: torch.Tensor
    logits: torch.Tensor

    @classmethod
    def of(cls, ahead: Ahead, taken: torch.Tensor) -> "KnownRows | None":
        """What is known after a token that only some rows `(rows,)` have taken as drafted."""
        if not bool(taken.any()):
            return None
        begin = ahead.used + 1
        return cls(taken, ahead.tokens[:, begin:], ahead.logits[:, begin:])

    def in_place_of(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits of a draft `(rows, vocab_size)`, with those that are known."""
        return torch.where(self.rows[:, None], self.logits[:, 0], logits)

    def after(self, tokens: torch.Tensor) -> "KnownRows | None":
        """What is known after the next drafted tokens `(rows,)`."""
        if not self.tokens.shape[1]:
            return None
        rows = self.rows & (self.tokens[:, 0] == tokens)
        return KnownRows(rows, self.tokens[:, 1:], self.logits[:, 1:]) if bool(rows.any()) else None
