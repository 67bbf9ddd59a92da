# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The learned policy as a controller."""

import torch
from transformers import DynamicCache

from ..modeling_sol_policy import SOLPolicyModel
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
        if "cache" not in observation.state:
            observation.state["cache"] = DynamicCache()
        cache = observation.state["cache"]
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


register_controller("policy", lambda model, number: PolicyController(model.policy))
