# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The attention functions that transformers calls, registered in addition to the base's own implementation.

For every implementation that a base may use, a second name is registered with transformers, such as `sol_sdpa` for
`sdpa`: the attention function *and* the mask function. In a forward without a [`StepPlan`] the registered function
calls the original implementation with the original arguments. In a decode step with a `token_keep` attention reads the
selected keys only.
"""

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ...cache.shared_prefix import SharedPrefixLayer
from ..plan import ACTIVE
from .masks import is_plain, only_hides, refuse_unsupported
from .refresh.operation import RefreshAttention, attend_refresh
from .shared_prefix import attend_shared_prefix
from .step.operation import StepAttention, attend_step
from .stored_keys import cache_layer_of, refuse_capture


PREFIX = "sol_"


def register_attention(implementation: str) -> str:
    """Register our version of an attention implementation, attention and mask function, and return its name.

    Args:
        implementation (`str`): Name of the implementation that the base uses, e.g. `"sdpa"` or `"eager"`.
    """
    name = PREFIX + implementation
    if name not in ALL_ATTENTION_FUNCTIONS:
        AttentionInterface.register(name, _attention_function(implementation))
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[implementation])
    return name


def _attention_function(implementation: str) -> Callable:
    def sol_attention_forward(
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        context = ACTIVE.get()
        plan = context.plan if context is not None else None
        if plan is not None and plan.is_fanned_out:
            layer_idx = cache_layer_of(plan.cache, module.layer_idx, key)
            layer = plan.cache.layers[layer_idx]
            if isinstance(layer, SharedPrefixLayer):
                refuse_unsupported(module, kwargs, plan, attention_mask)
                plan.mark_done("token_keep", layer_idx)
                return attend_shared_prefix(layer, plan.rule, plan.token_keep, query, scaling), None
        original = functools.partial(
            _original(implementation, module),
            module,
            query,
            key,
            value,
            attention_mask,
            scaling=scaling,
            dropout=dropout,
            **kwargs,
        )
        if plan is not None and module.layer_idx in plan.sparse_layers:
            layer_idx = cache_layer_of(plan.cache, module.layer_idx, key)
            if plan.token_keep is not None:
                refuse_unsupported(module, kwargs, plan, attention_mask)
                plan.mark_done("token_keep", layer_idx)
                call = StepAttention(plan, layer_idx, query, key, value, scaling)
                return attend_step(call), None
            if is_plain(kwargs) and only_hides(plan, attention_mask):
                call = StepAttention(plan, layer_idx, query, key, value, scaling, original)
                return attend_step(call), call.weights
        refresh = context.refresh if context is not None and context.may_round_differently else None
        if refresh is not None and is_plain(kwargs):
            refresh_call = RefreshAttention(refresh, module.layer_idx, query, key, value, attention_mask, scaling)
            output = attend_refresh(refresh_call)
            if output is not None:
                return output, None
        if context is not None:
            refuse_capture(context.told, query)
        return original()

    return sol_attention_forward


def _original(implementation: str, module: torch.nn.Module) -> Callable:
    """The original attention function; that of `eager` is defined in each model file."""
    if implementation in ALL_ATTENTION_FUNCTIONS:
        return ALL_ATTENTION_FUNCTIONS[implementation]
    return sys.modules[type(module).__module__].eager_attention_forward
