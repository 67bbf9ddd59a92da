# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The controller of steps that are all dense: it has nothing to choose."""

import torch

from .base import Controller, Observation


class DenseController(Controller):
    """Always prefers the dense action."""

    needs_budget = False
    rows_are_independent = True

    def __call__(self, observation: Observation) -> torch.Tensor:
        space = observation.action_space
        scores = torch.zeros(len(space), device=observation.controllable.device)
        scores[space.dense_id] = 1
        return scores.expand(observation.rows, -1)
