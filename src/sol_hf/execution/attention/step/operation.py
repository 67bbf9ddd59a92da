# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The attention of one layer in a decode step, and all of its implementations.

With a `token_keep` they attend to the keys that the plan's criterion selects, without one to all keys. The first
implementation is then the base's own attention.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from transformers.cache_utils import CacheLayerMixin

from ....selection.criterion import CRITERIA
from ...dispatch import Operation
from ...plan import StepPlan
from ..score_changes import ScoreChanges
from ..stored_keys import is_stored


LEAST_KEYS = 32
"""Least number of keys for other code than the reference. Below it, compiling or loading a kernel does not pay off."""


@dataclass(eq=False)
class StepAttention:
    """Attention of one new token per row.

    Args:
        plan ([`StepPlan`]): Cache, selection rule, `token_keep` and backend.
        layer_idx (`int`): Layer of the cache that `key` and `value` come from.
        query (`torch.Tensor` of shape `(rows, heads, 1, head_dim)`): Query of the new token.
        key (`torch.Tensor` of shape `(rows, kv_heads, slots, head_dim)`): All cached keys.
        value (`torch.Tensor` of shape `(rows, kv_heads, slots, value_dim)`): All cached values.
        scaling (`float`, *optional*): Scale of the scores; `1 / sqrt(head_dim)` by default.
        base_attention (`Callable`, *optional*): The base's own attention function with its arguments, for a plan
            without `token_keep`.
        changes ([`ScoreChanges`], *optional*): What the base does with the scores, besides scaling.

    Attributes:
        weights (`torch.Tensor`, *optional*): Attention weights, if the base's own function has returned them.
    """

    plan: StepPlan
    layer_idx: int
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    scaling: float | None = None
    base_attention: Callable[[], tuple[torch.Tensor, torch.Tensor | None]] | None = None
    changes: ScoreChanges = field(default_factory=ScoreChanges)
    weights: torch.Tensor | None = None

    @property
    def layer(self) -> CacheLayerMixin:
        """The layer of the cache."""
        return self.plan.cache.layers[self.layer_idx]

    @cached_property
    def is_stored(self) -> bool:
        """Whether keys and values are those in the layer's storage, which compiled kernels read."""
        return is_stored(self.layer, self.key, self.value)

    @property
    def reads_pages(self) -> bool:
        """Whether the CPU's kernels for whole pages can attend to all keys, or to those that the criterion selects."""
        return self.changes.sinks is None and (
            self.plan.token_keep is None or CRITERIA[self.plan.rule.criterion].has_kernels
        )

    @property
    def reads_tokens(self) -> bool:
        """Whether the CPU's kernel for single tokens can attend to the keys that the criterion selects."""
        plan = self.plan
        selects = plan.token_keep is not None and CRITERIA[plan.rule.criterion].has_token_kernel(plan.rule)
        return self.changes.sinks is None and selects

    @property
    def is_long(self) -> bool:
        """Whether the text is long enough for `backend="auto"` to use another implementation than the reference."""
        return self.query.device.type == "cpu" and self.key.shape[2] >= LEAST_KEYS


STEP_ATTENTION: Operation[StepAttention] = Operation("implementation of a step's attention", package=__package__)
"""Implementations of a step's attention by name."""


def attend_step(call: StepAttention) -> torch.Tensor:
    """Attention of a decode step, `(rows, 1, heads, value_dim)`, by the implementation that the backend chooses.

    Raises:
        ValueError: in a captured forward, if the Triton kernels cannot be used.
    """
    output = STEP_ATTENTION.run(call, call.plan.backend)
    assert output is not None, "either the base or `gather` can compute every call"
    return output
