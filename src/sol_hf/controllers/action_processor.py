# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What all processors of action scores have in common, and how actions are ruled out.

Each is called as `processor(action_ids, scores, observation)`: the actions of the running episode
`(rows, steps)`, the scores `(rows, n_actions)` and the [`Observation`]. transformers' own warpers, which take the
first two arguments only, work unchanged.
"""

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from ..budget.action_space import ActionSpace
from .base import Observation


class ActionProcessor(LogitsProcessor):
    """Base class of processors that need the observation."""

    def __call__(self, action_ids: torch.Tensor, scores: torch.Tensor, observation: Observation) -> torch.Tensor:
        """Edited scores, of shape `(rows, n_actions)`."""
        raise NotImplementedError


def restrict(scores: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """Rule out all actions that are not `allowed` `(rows, n_actions)`.

    If earlier processors have ruled out every allowed action of a row, all its allowed actions get the same score.
    """
    restricted = scores.masked_fill(~allowed, float("-inf"))
    stranded = restricted.amax(dim=-1, keepdim=True) == float("-inf")
    return torch.where(stranded, torch.zeros_like(scores).masked_fill(~allowed, float("-inf")), restricted)


def hold_axes(scores: torch.Tensor, held: torch.Tensor, space: ActionSpace) -> torch.Tensor:
    """Rule out all actions that lower an axis of a row where `held` `(rows, axes)` is true."""
    ratios = space.ratios_on(scores.device)
    return restrict(scores, ((ratios == ratios.amax(dim=0)) | ~held[:, None]).all(dim=-1))


class ActionProcessorList(LogitsProcessorList):
    """Applies processors in order. The only change w.r.t. `LogitsProcessorList` is its name."""
