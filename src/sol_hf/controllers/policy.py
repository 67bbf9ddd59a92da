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
        output = self.policy(
            hidden_states=observation.hidden_state[:, None],
            token_embeddings=observation.token_embedding[:, None],
            scalars=observation.scalars[:, None],
            previous_actions=observation.previous_action[:, None],
            past_key_values=observation.state["cache"],
            compiled=observation.backend != "reference",
        )
        return output.logits[:, -1].float()


register_controller("policy", lambda model, number: PolicyController(model.policy))
