# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Spends more after an uncertain prediction."""

import math

import torch

from .base import Observation
from .registry import register_controller
from .signal import SignalController


class EntropyController(SignalController):
    """Spends more after an uncertain prediction (the published EMC).

    The signal is `mix * H / log V + (1 - mix) * (1 - (p1 - p2))`, with the entropy `H` of the next-token distribution
    after the token before, the size `V` of the vocabulary, and the two largest probabilities `p1` and `p2`.

    Args:
        mix (`float`, *optional*, defaults to 1.0): Weight of the entropy in 0..1; the margin has the rest.
        gain (`float`, *optional*, defaults to 0.35): Weight of the signal.
    """

    needs_logits = True

    def __init__(self, mix: float = 1.0, gain: float = 0.35):
        super().__init__(gain)
        if not 0 <= mix <= 1:
            raise ValueError(f"`mix` must lie in 0..1, got {mix}.")
        self.mix = mix

    def digest_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """The signal, `(rows,)`, which is all that is needed of the logits."""
        logprobs = logits.float().log_softmax(dim=-1)
        probability = logprobs.exp()
        entropy = -(probability * logprobs.clamp(min=torch.finfo(logprobs.dtype).min)).sum(dim=-1)
        best = probability.topk(min(2, logits.shape[-1]), dim=-1).values
        margin = best[:, 0] - best[:, 1:].sum(dim=-1)
        return self.mix * entropy / math.log(max(logits.shape[-1], 2)) + (1 - self.mix) * (1 - margin)

    def signal(self, observation: Observation) -> torch.Tensor:
        if observation.logits_digest is not None:
            return observation.logits_digest
        if observation.total_step or bool(observation.controllable.any()):
            raise ValueError(
                "EntropyController needs the logits of the token before, which ran without it: pass two new tokens or "
                "more, so that the first of them is processed densely."
            )
        return torch.full_like(observation.remaining, 0.5)


register_controller("entropy", lambda model, number: EntropyController())
