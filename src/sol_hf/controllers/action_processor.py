# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What all processors of action scores have in common, and how actions are ruled out.

Each is called as `processor(action_ids, scores, observation)`: the actions of the running episode
`(rows, steps)`, the scores `(rows, n_actions)` and the [`Observation`]. transformers' own warpers, which take the
first two arguments only, work unchanged.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
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
    if scores.device.type == "cpu" and scores.dtype == torch.float32 and not scores.requires_grad:
        return torch.from_numpy(_restricted(scores.numpy(), allowed.numpy()))
    restricted = scores.masked_fill(~allowed, float("-inf"))
    stranded = restricted.amax(dim=-1, keepdim=True) == float("-inf")
    return torch.where(stranded, torch.zeros_like(scores).masked_fill(~allowed, float("-inf")), restricted)


def _restricted(scores: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """The same by numpy, which takes less time for so few numbers."""
    nothing = np.float32(-np.inf)
    restricted = np.where(allowed, scores, nothing)
    stranded = restricted.max(axis=-1, keepdims=True) == nothing
    return np.where(stranded, np.where(allowed, np.float32(0), nothing), restricted) if stranded.any() else restricted


def hold_axes(scores: torch.Tensor, held: torch.Tensor, space: ActionSpace) -> torch.Tensor:
    """Rule out all actions that lower an axis of a row where `held` `(rows, axes)` is true."""
    ratios = space.ratios_on(scores.device)
    return restrict(scores, ((ratios == ratios.amax(dim=0)) | ~held[:, None]).all(dim=-1))


class ActionProcessorList(LogitsProcessorList):
    """Applies processors in order, as `LogitsProcessorList` does, and looks at the signature of a class only once."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Edited scores, of shape `(rows, n_actions)`."""
        for processor in self:
            knows = tuple(kwargs) == ("observation",) and _takes_observation(type(processor).__call__)
            apply = processor if knows else LogitsProcessorList([processor])
            scores = apply(input_ids, scores, **kwargs)
        return scores


@functools.cache
def _takes_observation(call: Callable) -> bool:
    """Whether a processor's `__call__` takes the observation, and nothing else beside ids and scores."""
    return tuple(inspect.signature(call).parameters)[3:] == ("observation",)
