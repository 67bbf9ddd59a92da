# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What is counted: a base with a policy."""

from typing import Any, Protocol

from transformers import PreTrainedModel

from ..budget.action_space import ActionSpace
from ..cache.sol_cache import SOLCache
from ..configuration_sol import SOLConfig


class CountedModel(Protocol):
    """A base with a policy and its config: a [`SOLForCausalLM`]."""

    base: PreTrainedModel
    policy: Any
    config: SOLConfig

    @property
    def action_space(self) -> ActionSpace:
        """The actions."""

    def new_cache(self, kv_dtype: str | None = None) -> SOLCache:
        """An empty cache."""
