# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Counts of what a decode step reads and computes, and their reduction by the levels of an axis.

Every axis has an entry in the folder `axes`, registered in [`AXIS_COSTS`]. An entry turns the counts of a dense step,
[`StepCounts`], into those of a step at a level. Entries multiply counts, so their order does not matter. An axis
without an entry saves nothing.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from ..errors import UnsupportedAxisError
from ..execution.decoder_layers import text_modules
from ..execution.lm_head import lm_head_of
from ..execution.mlp.discovery import find_sites
from ..registry import Registry
from .counted_model import CountedModel
from .expert_counts import layout_of, share_read
from .stored_weights import is_plain, stored_bytes, stored_tensors, weights_in


@dataclass(frozen=True)
class Weights:
    """Number of weights that a forward of one token reads.

    Args:
        mlp_input (`int`): In MLP matrices whose input is the hidden state.
        mlp_last (`int`): In the matrices of last projections, whose inputs are the neurons.
        mlp (`int`): In all MLPs.
        head (`int`): In the LM head.
        total (`int`): In the text decoder and the LM head, with a single row of every embedding.
        itemsize (`int`): Bytes of a weight of the embeddings, and of most others.
    """

    mlp_input: int
    mlp_last: int
    mlp: int
    head: int
    total: int
    itemsize: int

    @classmethod
    def of(cls, model: CountedModel) -> "Weights":
        """The weights of the base of `model`."""
        base, mlps = model.base, MlpModules.of(model.base)
        return cls(
            mlp_input=_numbers(mlps.inputs) + sum(first.numbers for first, _ in mlps.experts),
            mlp_last=_numbers(mlps.lasts) + sum(last.numbers for _, last in mlps.experts),
            mlp=sum(map(own_numbers, mlps.every)),
            head=read_numbers(base.get_output_embeddings()),
            total=sum(map(own_numbers, step_modules(base))),
            itemsize=base.get_input_embeddings().weight.element_size(),
        )


class MlpModules(NamedTuple):
    """The modules of the MLPs of a base that the axes tell apart.

    Args:
        inputs (`list[nn.Module]`): Linear layers whose input is the hidden state, with plain weights.
        lasts (`list[nn.Module]`): Those of last projections, whose inputs are the neurons.
        every (`list[nn.Module]`): All modules of MLPs.
    """

    inputs: list[nn.Module]
    lasts: list[nn.Module]
    every: list[nn.Module]

    @classmethod
    def of(cls, base: PreTrainedModel) -> "MlpModules":
        """Those of `base`; none if its MLPs are not controlled."""
        width = base.get_input_embeddings().weight.shape[-1]
        try:
            sites = find_sites(base)
        except UnsupportedAxisError:
            sites = ()
        every = list(dict.fromkeys(part for site in sites for mlp in site.modules for part in mlp.modules()))
        projections = [site.last for site in sites if site.last is not None]
        inner = {part for last in projections for part in last.modules()}
        inputs = [part for part in every if part not in inner and _has_matrix(part) and _inputs(part) == width]
        return cls(inputs, [part for last in projections for part in _of_widest_input(last)], every)

    @property
    def experts(self) -> list[tuple["ReadMatrix", "ReadMatrix"]]:
        """What a token reads of first and last projections of experts, which are among the parameters of `every`."""
        layouts = ((layout_of(part), share_read(part)) for part in self.every)
        plain = ((of, share) for of, share in layouts if of is not None and is_plain(of.first) and is_plain(of.last))
        return [(ReadMatrix(of.first, share), ReadMatrix(of.last, share)) for of, share in plain]


class ReadMatrix(NamedTuple):
    """Weights of which a token reads a share."""

    weight: torch.Tensor
    share: float

    @property
    def numbers(self) -> int:
        """How many it reads."""
        return round(self.weight.numel() * self.share)

    @property
    def bytes(self) -> int:
        """Their bytes."""
        return round(self.weight.nbytes * self.share)


def _numbers(parts: list[nn.Module]) -> int:
    return sum(_matrix(part).numel() for part in parts)


def _of_widest_input(projection: nn.Module) -> list[nn.Module]:
    """The linear layers of a projection whose inputs are the neurons; an adapter has others behind them."""
    matrices = [part for part in projection.modules() if _has_matrix(part)]
    most = max(map(_inputs, matrices), default=0)
    return [part for part in matrices if _inputs(part) == most]


def _has_matrix(part: nn.Module) -> bool:
    """Whether a module is a linear layer with a plain weight of its own, not that of another module."""
    weight = vars(part)["_parameters"].get("weight", vars(part)["_buffers"].get("weight"))
    return is_plain(weight) and weight.dim() == 2 and not isinstance(part, nn.Embedding)


def _matrix(part: nn.Module) -> torch.Tensor:
    """The weight of a linear layer."""
    weight = part.weight
    assert isinstance(weight, torch.Tensor)
    return weight


def _inputs(part: nn.Module) -> int:
    """Input channels of a linear layer."""
    return _matrix(part).shape[0 if type(part).__name__ == "Conv1D" else 1]


def read_numbers(module: nn.Module) -> int:
    """Parameters that a forward of one token reads: of an embedding one row, else all. A tied head counts in full."""
    return sum(map(own_numbers, module.modules()))


def own_numbers(part: nn.Module) -> int:
    """Parameters of one module, without those of its parts, that a forward of one token reads."""
    if isinstance(part, nn.Embedding):
        return sum(p.shape[-1] for p in part.parameters(recurse=False))
    return round(weights_in(part) * share_read(part))


def read_bytes(modules: Iterable[nn.Module]) -> int:
    """Bytes of the parameters of modules, without those of their parts, that a forward of one token reads."""
    total = 0
    for part in modules:
        own, share = stored_tensors(part), share_read(part)
        total += sum(p[0].nbytes if isinstance(part, nn.Embedding) else round(stored_bytes(p) * share) for p in own)
    return total


def step_modules(base: PreTrainedModel) -> list[nn.Module]:
    """The modules that a forward of one token runs: the text decoder and the LM head, no towers for other input."""
    return list(dict.fromkeys([*text_modules(base), *lm_head_of(base).modules()]))


@dataclass(frozen=True)
class StepCounts:
    """Counts of what one decode step reads and computes, for a single sequence.

    A size is the bytes per weight as read, as a fraction of `itemsize`.

    Args:
        mlp_input_weights (`float`): Weights read of MLP matrices whose input is the hidden state.
        mlp_last_weights (`float`): Weights read of the last projections of MLPs, whose inputs are the neurons.
        other_mlp_weights (`float`): Other weights read of MLPs: of other matrices, and biases.
        other_weights (`float`): Weights read outside of the MLPs.
        itemsize (`int`): Bytes per weight.
        kv_bytes (`float`): Bytes that attention reads from the cache.
        kv_flops (`float`): Floating-point operations of attention over the cache.
        nominal_mlp_size (`float`, *optional*, defaults to 1.0): Factor of the bytes of MLP weights, if these were
            stored with the bits of the action.
        mlp_input_size (`float`, *optional*, defaults to 1.0): Size of `mlp_input_weights`.
        mlp_last_size (`float`, *optional*, defaults to 1.0): Size of `mlp_last_weights`.
        other_mlp_size (`float`, *optional*, defaults to 1.0): Size of `other_mlp_weights`.
        mlp_scale_bytes (`float`, *optional*, defaults to 0.0): Bytes of the scales of planes of MLPs, which are read
            whichever channels and neurons are kept.
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
    mlp_input_size: float = 1.0
    mlp_last_size: float = 1.0
    other_mlp_size: float = 1.0
    mlp_scale_bytes: float = 0.0
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
        outside = self.other_weights * self.itemsize - self.other_bytes_saved
        return self._mlp_bytes + self.mlp_scale_bytes + outside + self.kv_bytes

    @property
    def _mlp_bytes(self) -> float:
        sized = self.mlp_input_weights * self.mlp_input_size + self.mlp_last_weights * self.mlp_last_size
        return (sized + self.other_mlp_weights * self.other_mlp_size) * self.itemsize

    @property
    def nominal_bytes(self) -> float:
        """Bytes that would be read if the weights were stored with the bits of the action."""
        return self.bytes - self._mlp_bytes * (1 - self.nominal_mlp_size)

    @property
    def flops(self) -> float:
        """Floating-point operations: two per weight, and those of attention."""
        return 2 * self.weights + self.kv_flops


def dense_counts(model: CountedModel, weights: Weights, kv: tuple[float, float]) -> StepCounts:
    """Counts of a dense step.

    Args:
        model ([`CountedModel`]): Its base; weights may differ in dtype.
        weights ([`Weights`]): Of the base.
        kv (`tuple[float, float]`): Bytes and operations of dense attention.
    """
    mlps, itemsize = MlpModules.of(model.base), weights.itemsize
    other_mlp, outside = weights.mlp - weights.mlp_input - weights.mlp_last, weights.total - weights.mlp
    inputs = sum(_matrix(part).nbytes for part in mlps.inputs) + sum(first.bytes for first, _ in mlps.experts)
    lasts = sum(_matrix(part).nbytes for part in mlps.lasts) + sum(last.bytes for _, last in mlps.experts)
    all_of_mlps = read_bytes(mlps.every)
    return StepCounts(
        mlp_input_weights=weights.mlp_input,
        mlp_last_weights=weights.mlp_last,
        other_mlp_weights=other_mlp,
        other_weights=outside,
        itemsize=itemsize,
        kv_bytes=kv[0],
        kv_flops=kv[1],
        mlp_input_size=size_of(inputs, weights.mlp_input, itemsize),
        mlp_last_size=size_of(lasts, weights.mlp_last, itemsize),
        other_mlp_size=size_of(all_of_mlps - inputs - lasts, other_mlp, itemsize),
        other_bytes_saved=outside * itemsize - read_bytes(step_modules(model.base)) + all_of_mlps,
    )


def size_of(read: float, weights: int, itemsize: int) -> float:
    """Bytes per weight as a fraction of `itemsize`, 1 without weights."""
    return read / (weights * itemsize) if weights else 1.0


class AxisCost:
    """How the levels of one axis change the counts of a step.

    Args:
        model ([`CountedModel`]): Base and selection rule.
        keys (`int`): Keys that the step sees.
        bits_backend (`str`, *optional*, defaults to `"fake"`): How `bits` is computed, see [`StepPlan`].
    """

    def __init__(self, model: CountedModel, keys: int, bits_backend: str = "fake"):
        self.model, self.keys, self.bits_backend = model, keys, bits_backend

    def at(self, level: float) -> Callable[[StepCounts], StepCounts]:
        """A function that applies a level to the counts of a step; called once per level.

        Args:
            level (`float`): In axis units.
        """
        raise NotImplementedError


AXIS_COSTS: Registry[type[AxisCost]] = Registry("axis cost", package=f"{__package__}.axes")
"""The costs of all axes that reduce the counts, by the name of the axis."""
