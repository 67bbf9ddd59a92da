# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Counts of what a decode step reads and computes, and their reduction by the levels of an axis.

Every axis has an entry in the folder `costs`, registered in [`AXIS_COSTS`]. An entry turns the counts of a dense step,
[`StepCounts`], into those of a step at a level. Entries multiply counts, so their order does not matter. An axis
without an entry saves nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from ..errors import UnsupportedAxisError
from ..execution.mlp.discovery import find_mlps, last_projection
from ..modeling_sol import SOLForCausalLM
from ..registry import Registry


@dataclass(frozen=True)
class Weights:
    """Number of weights that a forward of one token reads.

    Args:
        mlp_input (`int`): In MLP matrices whose input is the hidden state.
        mlp_last (`int`): In the matrices of last projections, whose inputs are the neurons.
        mlp (`int`): In all MLPs.
        head (`int`): In the LM head.
        total (`int`): In the whole base, with a single row of every embedding.
        itemsize (`int`): Bytes per weight.
    """

    mlp_input: int
    mlp_last: int
    mlp: int
    head: int
    total: int
    itemsize: int

    @classmethod
    def of(cls, model: SOLForCausalLM) -> "Weights":
        """The weights of the base of `model`."""
        base = model.base
        width = base.get_input_embeddings().weight.shape[-1]
        try:
            mlps = find_mlps(base)
        except UnsupportedAxisError:  # then the axes of MLPs are not controlled
            mlps = ()
        lasts = [last for last in map(last_projection, mlps) if last is not None]
        inner = {part for last in lasts for part in last.modules()}
        return cls(
            mlp_input=sum(_input_weights(part, width) for mlp in mlps for part in mlp.modules() if part not in inner),
            mlp_last=sum(_matrix_weights(part) for part in inner),
            mlp=sum(read_numbers(mlp) for mlp in mlps),
            head=read_numbers(base.get_output_embeddings()),
            total=read_numbers(base),
            itemsize=base.get_input_embeddings().weight.element_size(),
        )


def _input_weights(part: nn.Module, width: int) -> int:
    """Number of weights of a linear layer with `width` input channels, 0 for any other module."""
    weight = getattr(part, "weight", None)
    if not isinstance(weight, torch.Tensor) or not _matrix_weights(part):
        return 0
    inputs = weight.shape[0] if type(part).__name__ == "Conv1D" else weight.shape[1]
    return weight.numel() if inputs == width else 0


def _matrix_weights(part: nn.Module) -> int:
    """Number of weights of a linear layer without its bias, 0 for any other module."""
    weight = getattr(part, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.dim() != 2 or isinstance(part, nn.Embedding):
        return 0
    return weight.numel()


def read_numbers(module: nn.Module) -> int:
    """Parameters that a forward of one token reads: of an embedding one row, else all. A tied head counts in full."""
    numbers = 0
    for part in module.modules():
        own = part.parameters(recurse=False)
        numbers += sum(p.shape[-1] if isinstance(part, nn.Embedding) else p.numel() for p in own)
    return numbers


@dataclass(frozen=True)
class StepCounts:
    """Counts of what one decode step reads and computes, for a single sequence.

    Args:
        mlp_input_weights (`float`): Weights read of MLP matrices whose input is the hidden state.
        mlp_last_weights (`float`): Weights read of the last projections of MLPs, whose inputs are the neurons.
        other_mlp_weights (`float`): Other weights read of MLPs: of other matrices, and biases.
        other_weights (`float`): Weights read outside of the MLPs.
        itemsize (`int`): Bytes per weight.
        kv_bytes (`float`): Bytes that attention reads from the cache.
        kv_flops (`float`): Floating-point operations of attention over the cache.
        nominal_mlp_size (`float`, *optional*, defaults to 1.0): Bytes per MLP weight as a fraction of `itemsize`,
            if the weights were stored with the bits of the action.
        mlp_size (`float`, *optional*, defaults to 1.0): Bytes per MLP weight as a fraction of `itemsize`, as read.
        other_bytes_saved (`float`, *optional*, defaults to 0.0): Bytes by which the weights outside of the MLPs are
            smaller as read.
    """

    mlp_input_weights: float
    mlp_last_weights: float
    other_mlp_weights: float
    other_weights: float
    itemsize: int
    kv_bytes: float
    kv_flops: float
    nominal_mlp_size: float = 1.0
    mlp_size: float = 1.0
    other_bytes_saved: float = 0.0

    def times(self, **factors: float) -> "StepCounts":
        """A copy in which the named counts are multiplied by factors."""
        return replace(self, **{name: getattr(self, name) * factor for name, factor in factors.items()})

    @property
    def weights(self) -> float:
        """All weights read."""
        return self.mlp_weights + self.other_weights

    @property
    def mlp_weights(self) -> float:
        """All weights read of MLPs."""
        return self.mlp_input_weights + self.mlp_last_weights + self.other_mlp_weights

    @property
    def bytes(self) -> float:
        """Bytes read."""
        weights = self.mlp_weights * self.mlp_size + self.other_weights
        return weights * self.itemsize - self.other_bytes_saved + self.kv_bytes

    @property
    def nominal_bytes(self) -> float:
        """Bytes that would be read if the weights were stored with the bits of the action."""
        return self.bytes - self.mlp_weights * self.mlp_size * (1 - self.nominal_mlp_size) * self.itemsize

    @property
    def flops(self) -> float:
        """Floating-point operations: two per weight, and those of attention."""
        return 2 * self.weights + self.kv_flops


class AxisCost:
    """How the levels of one axis change the counts of a step.

    Args:
        model ([`SOLForCausalLM`]): Base and selection rule.
        keys (`int`): Keys that the step sees.
        bits_backend (`str`, *optional*, defaults to `"fake"`): How `bits` is computed, see [`StepPlan`].
    """

    def __init__(self, model: SOLForCausalLM, keys: int, bits_backend: str = "fake"):
        self.model, self.keys, self.bits_backend = model, keys, bits_backend

    def at(self, level: float) -> Callable[[StepCounts], StepCounts]:
        """A function that applies a level to the counts of a step; called once per level.

        Args:
            level (`float`): In axis units.
        """
        raise NotImplementedError


AXIS_COSTS: Registry[type[AxisCost]] = Registry("axis cost", package=f"{__package__}.costs")
"""The costs of all axes that reduce the counts, by the name of the axis."""
