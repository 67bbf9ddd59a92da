# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Finds the MLPs of a base."""

import inspect

from torch import nn
from transformers import PreTrainedModel

from ...errors import UnsupportedAxisError
from ..decoder_layers import decoder_layers


MLP_NAMES = ("mlp", "feed_forward", "ffn")


EXPERT_NAMES = ("experts", "router")


def find_mlps(base: PreTrainedModel) -> tuple[nn.Module, ...]:
    """One MLP module per decoder layer.

    Raises:
        UnsupportedAxisError: if a layer has none, or has a mixture of experts, whose routing would change.
    """
    name = type(base).__name__
    layers = decoder_layers(base)
    if layers is None:
        raise UnsupportedAxisError(
            f"The axes `mlp_keep` and `bits` cannot be controlled on {name}: no decoder layers."
        )
    mlps = []
    for index, layer in enumerate(layers):
        found = [child for child_name, child in layer.named_children() if child_name in MLP_NAMES]
        if len(found) != 1:
            raise UnsupportedAxisError(
                f"The axes `mlp_keep` and `bits` cannot be controlled on {name}: layer {index} "
                f"({type(layer).__name__}) has no single MLP module among {', '.join(MLP_NAMES)}."
            )
        if any(child_name in EXPERT_NAMES for child_name, _ in found[0].named_children()):
            raise UnsupportedAxisError(
                f"The axes `mlp_keep` and `bits` cannot be controlled on {name}: the MLP of layer {index} is a "
                "mixture of experts, and zeroed inputs would change its routing."
            )
        if len(inspect.signature(type(found[0]).forward).parameters) != 2:  # the module itself, the hidden state
            raise UnsupportedAxisError(
                f"The axes `mlp_keep` and `bits` cannot be controlled on {name}: {type(found[0]).__name__} takes more "
                "than the hidden state, so its input and output are not those of a plain MLP."
            )
        mlps.append(found[0])
    return tuple(mlps)
