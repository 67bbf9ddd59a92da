# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Bytes that a KV refresh reads: those of a dense step without the LM head, or all bits of planes."""

from ..execution.linear.planed_layers import planed_layers
from ..execution.linear.step_linear import matrix_of
from ..execution.lm_head import lm_head_of
from ..execution.mlp.discovery import find_mlps
from ..selection.nested_planes import plane_bytes
from .axis_costs import StepCounts, read_bytes
from .counted_model import CountedModel


def refresh_bytes(model: CountedModel, dense: StepCounts, in_planes: bool = False) -> float:
    """Bytes of one refresh, whose tokens are processed together.

    Args:
        model ([`CountedModel`]): The base.
        dense ([`StepCounts`]): Counts of a dense step.
        in_planes (`bool`, *optional*, defaults to `False`): Whether linear layers read planes of their weights.
    """
    head = lm_head_of(model.base)
    total = dense.bytes - read_bytes(head.modules())
    if not in_planes:
        return total
    of_head = {id(module) for module in head.modules()}
    for layer in planed_layers(model.base, find_mlps(model.base)):
        if layer.part is not None and id(layer.module) not in of_head:
            weight = matrix_of(layer.module)
            total += plane_bytes(*weight.shape) - weight.nbytes
    return total
