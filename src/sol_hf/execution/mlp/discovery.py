# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Finds the MLPs of a base, and the last projection of each."""

import inspect
from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel

from ...errors import UnsupportedAxisError
from ..decoder_layers import decoder_layers, text_config


MLP_NAMES = ("mlp", "feed_forward", "ffn")


EXPERT_NAMES = ("experts", "router")


LAST_NAMES = ("down_proj", "fc2", "c_proj", "dense_4h_to_h", "fc_out", "w2", "output_linear")
"""Names of an MLP's last projection. Its inputs are the neurons: `act(gate) * up`, or `act(fc1)` without a gate."""


def find_mlps(base: PreTrainedModel) -> tuple[nn.Module, ...]:
    """One MLP module per decoder layer.

    Raises:
        UnsupportedAxisError: if a layer has none, or has a mixture of experts, whose routing would change.
    """
    start = f"The axes `neuron_keep`, `mlp_keep` and `bits` cannot be controlled on {type(base).__name__}"
    layers = decoder_layers(base)
    if layers is None:
        raise UnsupportedAxisError(f"{start}: no decoder layers.")
    mlps = []
    for index, layer in enumerate(layers):
        found = [child for child_name, child in layer.named_children() if child_name in MLP_NAMES]
        if len(found) != 1:
            raise UnsupportedAxisError(
                f"{start}: layer {index} ({type(layer).__name__}) has no single MLP module among "
                f"{', '.join(MLP_NAMES)}."
            )
        if any(child_name in EXPERT_NAMES for child_name, _ in found[0].named_children()):
            raise UnsupportedAxisError(
                f"{start}: the MLP of layer {index} is a mixture of experts, and zeroed inputs would change its "
                "routing."
            )
        if len(inspect.signature(type(found[0]).forward).parameters) != 2:  # the module itself, the hidden state
            raise UnsupportedAxisError(
                f"{start}: {type(found[0]).__name__} takes more than the hidden state, so its input and output are "
                "not those of a plain MLP."
            )
        mlps.append(found[0])
    return tuple(mlps)


def last_projection(mlp: nn.Module) -> nn.Module | None:
    """The last projection of an MLP; `None` if there is no child with a known name, or more than one."""
    found = [child for name, child in mlp.named_children() if name in LAST_NAMES]
    return found[0] if len(found) == 1 else None


def find_last_projections(base: PreTrainedModel, mlps: Sequence[nn.Module]) -> tuple[nn.Module, ...]:
    """The last projection of every MLP of a base.

    Raises:
        UnsupportedAxisError: if one has none that is known, or the one of that name is not the last.
    """
    start = f"The axis `neuron_keep` cannot be controlled on {type(base).__name__}"
    hidden_size, found = getattr(text_config(base), "hidden_size", None), []
    for layer, mlp in enumerate(mlps):
        last, what = last_projection(mlp), f"the MLP of layer {layer} ({type(mlp).__name__})"
        if last is None:
            children = ", ".join(name for name, _ in mlp.named_children()) or "no children"
            raise UnsupportedAxisError(
                f"{start}: {what} has no single last projection among {', '.join(LAST_NAMES)}; it has {children}."
            )
        outputs = output_size(last)
        if None not in (outputs, hidden_size) and outputs != hidden_size:
            raise UnsupportedAxisError(
                f"{start}: {what} has a projection of the name of a last one, but its {outputs} outputs are not the "
                f"{hidden_size} channels of the hidden state."
            )
        found.append(last)
    return tuple(found)


def output_size(projection: nn.Module) -> int | None:
    """Outputs of a linear layer, of `Conv1D` or of an adapter around one; `None` if it does not say."""
    return getattr(projection, "out_features", getattr(projection, "nf", None))
