# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A random schedule that meets the budget."""

import torch

from .base import Controller, Observation
from .levels import closeness, neighbouring_levels
from .registry import register_controller


class RandomController(Controller):
    """Per row and episode, a random permutation of the right number of high and low levels of every axis.

    Args:
        seed (`int`, *optional*, defaults to 0): Seed of the controller's own generator.
    """

    def __init__(self, seed: int = 0):
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, observation: Observation) -> torch.Tensor:
        targets = observation.require_targets()
        low, high, share = neighbouring_levels(targets, observation.action_space)
        length = observation.episode_length
        if "place" not in observation.state:
            noise = torch.rand(observation.rows, len(observation.action_space.axes), length, generator=self.generator)
            observation.state["place"] = noise.argsort(dim=-1).to(targets.device)
        is_high = observation.state["place"][:, :, observation.step] < torch.round(share * length)
        return closeness(torch.where(is_high, high, low), observation.action_space)


register_controller("random", lambda model, number: RandomController(number), number="seed")
