# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The attention functions that transformers calls, registered in addition to the base's own implementation.

For every implementation that a base may use, a second name is registered with transformers, such as `sol_sdpa` for
`sdpa`: the attention function *and* the mask function. In a forward without a [`StepPlan`] the registered function
calls the original implementation with the original arguments. In a decode step with a `token_keep` attention reads the
selected keys only.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ...cache.paged_layer import PagedLayer
from ...cache.shared_prefix import SharedPrefixLayer
from ..plan import ACTIVE, ForwardContext, RefreshPlan, StepPlan
from .implementation_name import ImplementationName
from .masks import PLAIN, is_plain, kind_of_mask, refuse_unsupported
from .refresh.operation import RefreshAttention, attend_refresh
from .score_changes import ScoreChanges
from .shared_prefix import attend_shared_prefix
from .step.operation import StepAttention, attend_step
from .stored_keys import cache_layer_of, refuse_capture, refuse_computed_keys, sharing_part


def register_attention(implementation: str) -> str:
    """Register our version of an attention implementation, attention and mask function, and return its name.

    Args:
        implementation (`str`): Name of the implementation that the base uses, e.g. `"sdpa"` or `"eager"`.
    """
    name = ImplementationName(implementation).registered
    if name not in ALL_ATTENTION_FUNCTIONS:
        AttentionInterface.register(name, _attention_function(implementation))
        AttentionMaskInterface.register(name, _mask_function(implementation))
    return name


def _mask_function(implementation: str) -> Callable:
    def sol_mask(*args, **kwargs) -> Any:
        mask, context = ALL_MASK_ATTENTION_FUNCTIONS[implementation](*args, **kwargs), ACTIVE.get()
        if context is not None and isinstance(mask, torch.Tensor):
            context.masks.append(mask)
        return mask

    return sol_mask


def _attention_function(implementation: str) -> Callable:
    def sol_attention_forward(
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *args,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        context = ACTIVE.get()
        original = functools.partial(
            _original(implementation, module), module, query, key, value, attention_mask, *args, **kwargs
        )
        if context is None or context.told is None or args:
            return original()
        call = AttentionCall(module, query, key, value, attention_mask, kwargs, original, implementation)
        output = _attend_by_plan(call, context.plan, context) if context.plan is not None else None
        if output is None and context.refresh is not None and context.may_round_differently:
            output = _attend_in_refresh(call, context.refresh, context)
        if output is not None:
            return output
        refuse_capture(context.told, query)
        return original()

    return sol_attention_forward


class AttentionCall(NamedTuple):
    """What a module passes to its attention function, and `original`, which computes it as the base does.

    `implementation` is the name of the base's own.
    """

    module: Any
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: torch.Tensor | None
    further: dict[str, Any]
    original: Callable[[], tuple[torch.Tensor, torch.Tensor | None]]
    implementation: str

    @property
    def scaling(self) -> float | None:
        """Scale of the scores; `1 / sqrt(head_dim)` if it is `None`."""
        return self.further.get("scaling")

    @property
    def changes(self) -> ScoreChanges:
        """What the base does with the scores, besides scaling."""
        return ScoreChanges.of(self.further)


Attended = tuple[torch.Tensor, torch.Tensor | None]


def _attend_by_plan(call: AttentionCall, plan: StepPlan, context: ForwardContext) -> Attended | None:
    """The attention of a decode step by its plan; `None` if the base's own is to be computed."""
    layer_idx = cache_layer_of(plan.cache, call.module, call.key)
    if layer_idx is None:
        return None
    layer = plan.cache.layers[layer_idx]
    if isinstance(layer, SharedPrefixLayer):
        refuse_unsupported(call.module, call.further, kind_of_mask(context, call.mask), call.implementation)
        refuse_computed_keys(call.module, layer, call.key)
        _mark_done(plan, layer_idx, call.module)
        output = attend_shared_prefix(layer, plan.rule, plan.token_keep, call.query, call.scaling, call.changes)
        return output, None
    if layer_idx not in plan.sparse_layers:
        return None
    dropped = layer.get_seq_length() - call.key.shape[2]
    kind = kind_of_mask(context, call.mask, plan.cache.padding, dropped)
    if plan.token_keep is not None:
        refuse_unsupported(call.module, call.further, kind, call.implementation)
        _mark_done(plan, layer_idx, call.module)
        step = StepAttention(plan, layer_idx, *call[1:4], call.scaling, changes=call.changes)
        return attend_step(step), None
    if kind == PLAIN and is_plain(call.further):
        step = StepAttention(plan, layer_idx, *call[1:4], call.scaling, call.original)
        return attend_step(step), step.weights
    return None


def _mark_done(plan: StepPlan, layer_idx: int, module: Any) -> None:
    """Tick off a cache layer, and a module that shares its keys with another one."""
    plan.mark_done("token_keep", layer_idx)
    own = getattr(module, "layer_idx", layer_idx)
    if own != layer_idx:
        plan.mark_done("token_keep", sharing_part(own))


def _attend_in_refresh(call: AttentionCall, refresh: RefreshPlan, context: ForwardContext) -> Attended | None:
    """The dense attention of a KV refresh; `None` if the base's own is to be computed."""
    layer_idx = cache_layer_of(refresh.cache, call.module, call.key)
    if layer_idx is None or not is_plain(call.further):
        return None
    if isinstance(refresh.cache.layers[layer_idx], PagedLayer) and refresh.rows_on_device is None:
        if kind_of_mask(context, call.mask, refresh.cache.padding) != PLAIN:
            return None
    output = attend_refresh(RefreshAttention(refresh, layer_idx, *call[1:5], call.scaling))
    return None if output is None else (output, None)


def _original(implementation: str, module: torch.nn.Module) -> Callable:
    """The original attention function; that of `eager` is defined in each model file."""
    if implementation in ALL_ATTENTION_FUNCTIONS:
        return ALL_ATTENTION_FUNCTIONS[implementation]
    return eager_attention_of(type(module).forward)


@functools.lru_cache
def eager_attention_of(forward: Callable) -> Callable:
    """The eager attention that the forward of a class of modules passes to transformers as the default."""
    function = inspect.unwrap(forward)
    names = [name for name in function.__code__.co_names if name.endswith("eager_attention_forward")]
    return function.__globals__[names[0] if len(names) == 1 else "eager_attention_forward"]
