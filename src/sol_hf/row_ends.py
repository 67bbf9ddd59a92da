# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""When each row of a generation ended, whatever ended it: an end token, a stop string, a criterion of the user's.

transformers' loop goes on until all rows have ended, and the steps of a row after its end must not count. The stopping
criteria know; [`RowEnds`] travels among them and is told what they said.
"""

import torch
from transformers import StoppingCriteria, StoppingCriteriaList


class RowEnds(StoppingCriteria):
    """A criterion that never stops a row, and remembers when the others did."""

    def __init__(self):
        self.ended: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores, **kwargs) -> torch.Tensor:
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    def running(self, steps: int) -> torch.Tensor:
        """Which of the first `steps` tokens were generated before their row ended, that token included.

        Returns:
            `torch.BoolTensor` of shape `(rows, steps)`.
        """
        ended = torch.stack(self.ended[:steps], dim=1)
        return ended.cumsum(dim=1) - ended.long() == 0


class ObservedStoppingCriteriaList(StoppingCriteriaList):
    """The only change w.r.t. `StoppingCriteriaList`: a [`RowEnds`] among the criteria is told the joint decision."""

    def __call__(self, input_ids: torch.Tensor, scores, **kwargs) -> torch.Tensor:
        ended = super().__call__(input_ids, scores, **kwargs)
        for criterion in self:
            if isinstance(criterion, RowEnds):
                criterion.ended.append(ended)
        return ended
