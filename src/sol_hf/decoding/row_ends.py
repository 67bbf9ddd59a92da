# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Records when each row of a generation ended, by an end token, a stop string or a criterion of the user.

transformers' loop continues until all rows have ended, and the steps of a row after its end must not count.
[`RowEnds`] is one of the stopping criteria, and records the result of all of them.
"""

import torch
from transformers import StoppingCriteria, StoppingCriteriaList


class RowEnds(StoppingCriteria):
    """A criterion that never stops a row, and records when the other criteria stopped it.

    Args:
        prompt_length (`int`): Tokens of a row before the first new one.
    """

    def __init__(self, prompt_length: int):
        self.lengths = [prompt_length]
        self.ended: list[torch.Tensor] = []
        self.so_far: torch.Tensor | None = None
        """Which rows `(rows,)` have ended at any length so far."""

    def record(self, length: int, ended: torch.Tensor) -> None:
        """Record which rows `(rows,)` have ended at a length of `length` tokens."""
        self.lengths.append(length)
        self.ended.append(ended)
        self.so_far = ended if self.so_far is None else self.so_far | ended

    def __call__(self, input_ids: torch.Tensor, scores, **kwargs) -> torch.Tensor:
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    def running(self) -> torch.Tensor:
        """A mask of the new tokens up to the end of their row, the last token included.

        The criteria are called once per forward, which adds one token, or several in assisted decoding.

        Returns:
            `torch.BoolTensor` of shape `(rows, new tokens)`.
        """
        ended = torch.stack(self.ended, dim=1)
        running = ended.cumsum(dim=1) - ended.long() == 0
        added = torch.tensor(self.lengths, device=ended.device).diff()
        return running.repeat_interleave(added, dim=1)


class ObservedStoppingCriteriaList(StoppingCriteriaList):
    """A `StoppingCriteriaList` that passes the combined result of all criteria to every [`RowEnds`] in the list."""

    def __call__(self, input_ids: torch.Tensor, scores, **kwargs) -> torch.Tensor:
        ended = super().__call__(input_ids, scores, **kwargs)
        for criterion in self:
            if isinstance(criterion, RowEnds):
                criterion.record(input_ids.shape[1], ended)
        return ended
