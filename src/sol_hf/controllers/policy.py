# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The learned policy as a controller."""

import torch
from transformers import Cache

from ..budget.limits import Limits
from ..modeling_sol_policy import SOLPolicyModel
from ..policy.episode_cache import EpisodeCache
from .base import Controller, Observation
from .registry import register_controller


class PolicyController(Controller):
    """Scores actions by a [`SOLPolicyModel`].

    Args:
        policy ([`SOLPolicyModel`]): The policy network.
    """

    follows_bank = rows_are_independent = True

    def __init__(self, policy: SOLPolicyModel):
        self.policy = policy

    def __call__(self, observation: Observation) -> torch.Tensor:
        cache = self._cache_of(observation)
        inputs = (
            observation.hidden_state,
            observation.token_embedding,
            observation.scalars,
            observation.previous_action,
        )
        if observation.backend != "reference" and isinstance(self.policy, SOLPolicyModel):
            logits = self.policy.step(*inputs, cache)
            if logits is not None:
                return logits
        hidden, embedding, scalars, previous = (tensor[:, None] for tensor in inputs)
        return self.policy(hidden, embedding, scalars, previous, past_key_values=cache).logits[:, -1].float()

    def choose(self, observation: Observation, limits: Limits) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The actions of a step within limits, by compiled code.

        Args:
            observation ([`Observation`]): The step.
            limits ([`Limits`]): What the processors of the call do.

        Returns:
            Actions `(rows,)` and `None`, or `None` and the scores `(rows, n_actions)` from which others choose; `None`
            twice if there is no compiled code for it, and nothing was done.
        """
        is_own = type(self) is PolicyController and isinstance(self.policy, SOLPolicyModel)
        if not is_own or observation.backend == "reference" or observation.controllable.device.type != "cpu":
            return None, None
        needs_bank, needs_end = limits.horizon == "generation", limits.exact
        if (needs_bank and observation.ledger.bank is None) or (needs_end and observation.remaining_in_call is None):
            return None, None  # the processors say what is missing
        if observation.require_targets().dtype != torch.float32:
            return None, None
        found = self.policy.choose(observation, self._cache_of(observation), limits)
        if found is None:
            return None, None
        actions, scores = found
        return (actions, None) if scores is None else (None, scores)

    @staticmethod
    def _cache_of(observation: Observation) -> Cache:
        if "cache" not in observation.state:
            observation.state["cache"] = EpisodeCache()
        return observation.state["cache"]


register_controller("policy", lambda model, number: PolicyController(model.policy))
