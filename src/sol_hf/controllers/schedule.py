# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Controllers that follow a given schedule."""

import torch

from .base import Controller, Observation
from .levels import closeness


class ScheduleController(Controller):
    """Follows a given schedule, independent of the model's outputs.

    Args:
        actions (`torch.LongTensor` of shape `(steps, rows)`): Action ids. A single column is used for all rows.

    Raises:
        ValueError: if a generation has more steps than the schedule, or another number of rows.
    """

    needs_budget = False

    def __init__(self, actions: torch.Tensor):
        actions = torch.as_tensor(actions)
        if actions.dim() != 2 or actions.is_floating_point():
            raise ValueError(f"A schedule has action ids of shape (steps, rows), got {tuple(actions.shape)}.")
        self.actions = actions.long()

    def __call__(self, observation: Observation) -> torch.Tensor:
        steps, rows = self.actions.shape
        if observation.total_step >= steps:
            raise ValueError(f"The schedule has {steps} steps, but step {observation.total_step + 1} was reached.")
        if rows not in (1, observation.rows):
            raise ValueError(f"The schedule has {rows} rows, but the input has {observation.rows}.")
        space = observation.action_space
        actions = self.actions[observation.total_step].to(observation.controllable.device)
        if observation.total_step == 0 and not bool(((self.actions >= 0) & (self.actions < len(space))).all()):
            raise ValueError(f"The schedule has action ids outside of 0..{len(space) - 1}.")
        scores = closeness(space.ratios_on(actions.device)[actions], space).expand(observation.rows, -1)
        chosen = actions.expand(observation.rows)[:, None]
        return scores.scatter(1, chosen, torch.ones_like(chosen, dtype=scores.dtype))
