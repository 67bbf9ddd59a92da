# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Arguments of a forward that have one entry per token, such as positions and token types.

They are cut where the tokens are cut, and kept with the steps of an episode, for its KV refresh.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch


@dataclass(frozen=True)
class TokenArgument:
    """A tensor with one entry per token.

    Args:
        value (`torch.Tensor`): The values.
        tokens (`int`): The dimension of the tokens.
        rows (`int`, *optional*): The dimension of the rows; `None` if all rows share the values.
    """

    value: torch.Tensor
    tokens: int
    rows: int | None

    @classmethod
    def find(cls, value: Any, rows: int, length: int) -> "TokenArgument | None":
        """The argument if its shape is that of `rows` rows with `length` tokens, else `None`.

        These shapes are known: `(rows, length, ...)` or `(1, length, ...)`, `(parts, rows, length)` of positions in
        several dimensions, and `(length,)`.
        """
        if not isinstance(value, torch.Tensor):
            return None
        shape = value.shape
        if len(shape) == 3 and shape[2] == length and shape[1] in (rows, 1):
            return cls(value, 2, 1 if shape[1] == rows else None)
        if len(shape) >= 2 and shape[1] == length and shape[0] in (rows, 1):
            return cls(value, 1, 0 if shape[0] == rows else None)
        return cls(value, 0, None) if tuple(shape) == (length,) else None

    @property
    def kind(self) -> tuple[int, int | None, tuple[int, ...]]:
        """Which dimensions have a meaning, and the sizes of the others; arguments of one kind can be joined."""
        shape = self.value.shape
        return self.tokens, self.rows, (*shape[: self.tokens], *shape[self.tokens + 1 :])

    def owned(self) -> "TokenArgument":
        """The values in a copy that nobody else can change."""
        return TokenArgument(self.value.clone(), self.tokens, self.rows)

    def cut(self, begin: int, end: int) -> "TokenArgument":
        """The values of the tokens from `begin` to `end`."""
        return TokenArgument(self.value.narrow(self.tokens, begin, end - begin), self.tokens, self.rows)

    def map_rows(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "TokenArgument":
        """The values after a function of tensors with the rows first."""
        if self.rows is None:
            return self
        return replace(self, value=function(self.value.movedim(self.rows, 0)).movedim(0, self.rows))


TokenArguments = Mapping[str, TokenArgument]
"""Arguments by name."""


def can_join(arguments: Sequence[TokenArguments]) -> bool:
    """Whether all of these have the same arguments, of the same kinds."""
    kinds = [{name: argument.kind for name, argument in part.items()} for part in arguments]
    return all(kind == kinds[0] for kind in kinds)


def join(arguments: Sequence[TokenArguments]) -> dict[str, TokenArgument]:
    """The arguments of tokens that follow one another, see [`can_join`]."""
    return {
        name: replace(first, value=torch.cat([part[name].value for part in arguments], dim=first.tokens))
        for name, first in arguments[0].items()
    }
