# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Spends more after a large change of the hidden state."""

import torch
from torch.nn.functional import cosine_similarity

from .base import Observation
from .registry import register_controller
from .signal import SignalController


class DriftController(SignalController):
    """Spends more after a large change of the base's hidden state (the published DAC).

    The signal is half of `1 - cosine`, cut off at 0.5, between the two latest hidden states; at the first step of an
    episode, between the embeddings of the token to process and of the one before it.

    Args:
        gain (`float`, *optional*, defaults to 0.35): Weight of the signal.
    """

    def signal(self, observation: Observation) -> torch.Tensor:
        pair = (observation.hidden_state, observation.previous_hidden_state)
        if observation.step == 0:
            pair = (observation.token_embedding, observation.previous_embedding)
        latest, before = pair
        if before is None:  # the very first token of a text
            return torch.full_like(observation.remaining, 0.5)
        cosine = cosine_similarity(latest.float(), before.float(), dim=-1)
        return (1 - cosine).clamp(0, 1) / 2


register_controller("drift", lambda model, number: DriftController())
