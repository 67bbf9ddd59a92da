# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Baselines that follow a budget step by step: each spends more where a signal of the base is high.

At every step an axis still has a level `c` that would spend its budget exactly if it were taken to the episode's end.
The step takes one of the two levels around `c`, the upper one if `c` is near it or the signal is high:

    lo ------------ c ------- hi        p = (c - lo) / (hi - lo) + gain * (signal - 0.5);   hi if p >= 0.5

What is chosen then stays within the levels from which the target can still be met; where no level is, the episode ends
below it. All axes see the same signal. The sums are the ledger's, in float32, and nothing is rounded away: a target
that is itself a level can thus end one level short, as it does in the published baseline.
"""

import math

import torch
from torch.nn.functional import cosine_similarity

from .controllers import Controller, Observation, closeness


class SignalController(Controller):
    """Base class: write [`SignalController.signal`].

    Args:
        gain (`float`, *optional*, defaults to 0.35): Weight of the signal.
    """

    def __init__(self, gain: float = 0.35):
        self.gain = gain

    def signal(self, observation: Observation) -> torch.Tensor:
        """How much this step is worth, `(rows,)` in 0..1; 0.5 changes nothing."""
        raise NotImplementedError

    def __call__(self, observation: Observation) -> torch.Tensor:
        urge = self.gain * (self.signal(observation).float() - 0.5)
        space = observation.action_space
        targets, ledger = observation.require_targets().double(), observation.ledger
        left = observation.remaining.double().clamp(min=1)
        unspent = targets * (ledger.episode_counts + left)[:, None] - ledger.episode_sums
        ratios = space.ratios_on(targets.device).double()
        columns = zip(ratios.unbind(-1), unspent.unbind(-1), strict=True)
        wanted = [spend(column.unique(), own, left, urge) for column, own in columns]
        return closeness(torch.stack(wanted, dim=-1), space)


def spend(levels: torch.Tensor, unspent: torch.Tensor, left: torch.Tensor, urge: torch.Tensor) -> torch.Tensor:
    """The level that a step takes on one axis.

    Args:
        levels (`torch.Tensor` of shape `(levels,)`): Ascending, in ratio units.
        unspent (`torch.Tensor` of shape `(rows,)`): What the steps left may sum up to.
        left (`torch.Tensor` of shape `(rows,)`): Steps left, this one included; at least 1.
        urge (`torch.Tensor` of shape `(rows,)`): Added to the share of the upper level.

    Returns:
        `torch.Tensor` of shape `(rows,)`.
    """
    lowest, highest = levels[0], levels[-1]
    level = (unspent / left).clamp(lowest, highest)
    low, high = at_most(levels, level), at_least(levels, level)
    share = (level - low) / (high - low).clamp(min=1e-6)
    chosen = torch.where((high > low) & (share + urge >= 0.5), high, low)
    least, most = unspent - (left - 1) * highest, unspent - (left - 1) * lowest
    return torch.minimum(torch.maximum(chosen, at_least(levels, least)), at_most(levels, most))


def at_most(levels: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Largest of the ascending levels that is at most each of `values` `(rows,)`; else the smallest of all."""
    index = torch.searchsorted(levels, values, right=True) - 1
    return levels[index.clamp(min=0)]


def at_least(levels: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Smallest of the ascending levels that is at least each of `values` `(rows,)`; else the largest of all."""
    index = torch.searchsorted(levels, values)
    return levels[index.clamp(max=len(levels) - 1)]


class EntropyController(SignalController):
    """Spends more after an uncertain prediction (the published EMC).

    The signal is `mix * H / log V + (1 - mix) * (1 - (p1 - p2))`, with the entropy `H` of the next-token distribution
    that the token before led to, the size `V` of the vocabulary, and the two largest probabilities.

    Args:
        mix (`float`, *optional*, defaults to 1.0): Weight of the entropy in 0..1; the rest is that of the margin.
        gain (`float`, *optional*, defaults to 0.35): Weight of the signal.
    """

    needs_logits = True

    def __init__(self, mix: float = 1.0, gain: float = 0.35):
        super().__init__(gain)
        if not 0 <= mix <= 1:
            raise ValueError(f"`mix` must lie in 0..1, got {mix}.")
        self.mix = mix

    def digest_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """The signal, `(rows,)`: nothing else of the logits is needed."""
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


class DriftController(SignalController):
    """Spends more where the base's hidden state has just moved (the published DAC).

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
