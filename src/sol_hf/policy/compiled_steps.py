# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The methods of a policy that run its steps by compiled code."""

from typing import Any

import torch
from transformers import Cache

from ..budget.limits import Limits
from .programs import program_of
from .short_weights import round_products


class CompiledSteps:
    """Base class of [`SOLPolicyModel`]: steps by compiled code, where that gives what the modules give."""

    config: Any

    def runs_compiled(self) -> bool:
        """Whether the policy computes what compiled code does."""
        raise NotImplementedError

    def step(
        self,
        hidden_states: torch.Tensor,
        token_embeddings: torch.Tensor,
        scalars: torch.Tensor,
        previous_actions: torch.Tensor,
        past_key_values: Cache,
    ) -> torch.Tensor | None:
        """The logits of one step by compiled code, which rounds differently.

        Args:
            hidden_states (`torch.Tensor` of shape `(rows, base_hidden_size)`): See `forward`.
            token_embeddings (`torch.Tensor` of shape `(rows, base_embedding_size)`): See `forward`.
            scalars (`torch.Tensor` of shape `(rows, columns)`): See `forward`.
            previous_actions (`torch.LongTensor` of shape `(rows,)`): See `forward`.
            past_key_values (`Cache`): Keys and values of earlier steps of the episode; those of this step are added.

        Returns:
            `torch.Tensor` of shape `(rows, n_actions)`: Logits in float32; `None` if `forward` has to run, for example
            with hooks or adapters, in another dtype, or for gradients.
        """
        if scalars.dtype != torch.float32:
            return None
        is_new = past_key_values.get_seq_length() == 0
        program = self._program(len(scalars), past_key_values, True, is_new)
        return program and program(hidden_states, token_embeddings, scalars, previous_actions, past_key_values)

    def choose(
        self, observation: Any, past_key_values: Cache, limits: Limits
    ) -> tuple[torch.Tensor, torch.Tensor | None] | None:
        """The best actions of one step within the limits of a call, by compiled code.

        Args:
            observation ([`Observation`]): The step.
            past_key_values (`Cache`): See `step`.
            limits ([`Limits`]): What the processors of the call do.

        Returns:
            Actions `(rows,)`, and `None`; logits in the place of `None` where these cannot be used for it. `None` if
            `forward` has to run, as in `step`.
        """
        if observation.episode_length != self.config.episode_length or observation.page_fill.dtype != torch.float32:
            return None
        begins = observation.total_step == 0
        program = self._program(observation.rows, past_key_values, begins or observation.step == 0, begins)
        return program and program.choose(observation, past_key_values, limits)

    def prepare_step(self, rows: int) -> None:
        """Compile what a step of a number of rows needs, if it can run by compiled code, so that no step has to."""
        program_of(self, rows)

    def round_weights(self) -> None:
        """Round the weights of all linear layers that are large to numbers in bfloat16, in place.

        They are still in float32, in memory and in files. But compiled code on a CPU then reads half of the bytes, and
        gives what the modules give. A policy that was trained before may take other actions afterwards.

        Examples:

        ```python
        >>> from sol_hf import SOLConfig, SOLPolicyModel
        >>> policy = SOLPolicyModel(SOLConfig(base_hidden_size=32, base_embedding_size=32, policy_hidden_size=64))
        >>> policy.round_weights()
        >>> weight = policy.input_projection.weight
        >>> bool((weight == weight.bfloat16().float()).all())
        True
        ```
        """
        round_products(self)

    def _program(self, rows: int, past_key_values: Cache, is_new: bool, is_call: bool) -> Any:
        """The program of a step; `None` if there is none, or the episode is over, of which `forward` then speaks."""
        if not self.runs_compiled() or past_key_values.get_seq_length() >= self.config.episode_length:
            return None
        return program_of(self, rows, is_new, is_call)
