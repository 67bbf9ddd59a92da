# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Attention over copies of the selected keys and values, in plain torch: the reference."""

import functools
from typing import ClassVar

import torch

from ....cache.paged_layer import PagedLayer
from ...dispatch import Implementation, Prepared
from ..score_changes import attend
from .operation import STEP_ATTENTION, StepAttention
from .selected_keys import select_keys


class Gather(Implementation[StepAttention]):
    """Gathers the selected keys and values, and attends to the copies."""

    order: ClassVar[int] = 10

    def prepare(self, call: StepAttention) -> Prepared | None:
        return None if call.plan.token_keep is None else functools.partial(attend_selected, call)


def attend_selected(call: StepAttention) -> torch.Tensor:
    """Attention of one new token per row over the keys that the plan's criterion selects.

    Returns:
        `torch.Tensor` of shape `(rows, 1, heads, value_dim)`.
    """
    query, key = call.query, call.key
    rows, heads, _, dim = query.shape
    kv_heads, slots = key.shape[1], key.shape[2]
    candidates, selection = select_keys(call)
    slot, in_use = candidates.slots_of(selection)
    per_head = slot.shape[1] == heads and heads != kv_heads
    chosen_key, chosen_value = _gather(call, slot.clamp(0, slots - 1), heads if per_head else kv_heads)
    if not per_head:
        query = query.reshape(rows, kv_heads, heads // kv_heads, dim)
    output = attend(query, chosen_key, chosen_value, in_use[:, :, None, :], call.scaling, call.changes)
    return output.reshape(rows, 1, heads, call.value.shape[-1])


def _gather(call: StepAttention, slot: torch.Tensor, heads: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values at `slot` `(rows, 1 or heads, m)`, of shape `(rows, heads, m, head_dim)`.

    `heads` is the number of query heads or of key-value heads.
    """
    key, value, layer = call.key, call.value, call.layer
    rows, kv_heads = key.shape[:2]
    if isinstance(layer, PagedLayer) and call.is_stored:
        flat_key, flat_value, stride = layer.flat_store()
    else:
        flat_key, flat_value, stride = key.flatten(0, 2), value.flatten(0, 2), key.shape[2]
    kv_head = torch.arange(heads, device=key.device) // (heads // kv_heads)
    base = (torch.arange(rows, device=key.device)[:, None] * kv_heads + kv_head) * stride
    index = (slot + base[:, :, None]).flatten()
    shape = (rows, heads, slot.shape[-1], -1)
    chosen_key, chosen_value = (flat.index_select(0, index).view(shape) for flat in (flat_key, flat_value))
    return chosen_key.to(key.dtype), chosen_value.to(value.dtype)


STEP_ATTENTION.register("gather", Gather())
