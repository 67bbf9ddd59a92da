# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What a step of the policy takes from tables, and its prior, by numpy.

These are a few numbers a row. An operation of torch takes some microseconds however few its numbers are, one of numpy
a fifth of that. The numbers are those of the modules.
"""

from typing import Any

import numpy as np
import torch


def numbers_of(tensor: torch.Tensor) -> np.ndarray:
    """A tensor as float32 for numpy, without a copy where it has that form."""
    return tensor.detach().to("cpu", torch.float32).numpy()


class PolicyTables:
    """Embeddings, prior and action space of a policy whose parameters are in float32 on the CPU.

    Args:
        policy (`nn.Module`): A [`SOLPolicyModel`].
    """

    def __init__(self, policy: Any):
        self._page_size, self._page_fill = policy.config.page_size, policy.scalar_columns.page_fill
        self._actions = numbers_of(policy.action_embedding.weight)
        self._positions = numbers_of(policy.position_embedding.weight)
        self._pages = None if policy.page_embedding is None else numbers_of(policy.page_embedding.weight)
        self._prior, self._counts = policy.budget_prior, policy.level_counts
        self._is_factored = policy.config.action_head == "factored"

    def action(self, previous: torch.Tensor) -> np.ndarray:
        """Embeddings `(rows, action_embedding_size)` of the actions before."""
        return self._actions[previous.numpy()]

    def added(self, step: int, scalars: np.ndarray) -> np.ndarray:
        """What is added to the projected features: `(policy_hidden_size,)`, or `(rows, policy_hidden_size)`."""
        position = self._positions[step]
        if self._pages is None:
            return position
        filled = np.rint(scalars[:, self._page_fill] * self._page_size).astype(np.int64)
        return position + self._pages[filled - 1]

    def logits(self, outputs: np.ndarray, scalars: np.ndarray) -> np.ndarray:
        """Logits `(rows, n_actions)` from the outputs of the heads `(rows, outputs)`, in memory of their own."""
        prior = None if self._prior is None else self._prior.of_step(scalars)
        if self._is_factored:
            return joint(outputs if prior is None else outputs + prior, self._counts)
        return outputs.copy() if prior is None else outputs + joint(prior, self._counts)


def joint(levels: np.ndarray, counts: tuple[int, ...]) -> np.ndarray:
    """[`joint_logits`] of numpy arrays, in memory of their own."""
    first, *others = np.split(levels, np.cumsum(counts)[:-1], axis=-1)
    answer = first.copy()
    for logits in others:
        answer = (answer[:, :, None] + logits[:, None, :]).reshape(len(levels), -1)
    return answer
