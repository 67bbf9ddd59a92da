# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The linear layers whose weights are read in fewer bits under `bits_backend="nested"`, and their checks.

They are all linear layers of the text decoder, and the LM head. Those of MLPs are read in the bits of the step, the
others in 6 at least: they are more sensitive than MLPs ([measured](docs/performance.md)).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from ...errors import UnsupportedAxisError
from ...selection.nested_planes import WIDTHS, plane_bytes
from ..decoder_layers import text_modules
from ..lm_head import lm_head_of
from ..step_part import StepPart
from .step_linear import PRODUCTS, StepLinear, matrix_of


LEAST_OUTSIDE_MLPS = 6


@dataclass(frozen=True)
class PlanedLayer:
    """A linear layer of a base.

    Args:
        name (`str`): Its name in the base, for messages.
        module (`nn.Module`): The layer.
        part ([`StepLinear`], *optional*): Its forward in a step; `None` for a layer that is not of a known class.
    """

    name: str
    module: nn.Module
    part: StepLinear | None


def planed_layers(base: PreTrainedModel, mlps: Sequence[nn.Module]) -> tuple[PlanedLayer, ...]:
    """The linear layers of the text decoder and the LM head of a base, each once.

    Args:
        base (`PreTrainedModel`): The base.
        mlps (`Sequence[nn.Module]`): Its MLPs.
    """
    names = {id(module): name for name, module in base.named_modules()}
    within = {id(module) for mlp in mlps for module in mlp.modules()}
    found = {}
    for module in (*text_modules(base), *lm_head_of(base).modules()):
        if _is_linear(module):
            part = StepLinear.of(module) if type(module) in PRODUCTS else None
            if part is not None:
                part.least_bits = min(WIDTHS) if id(module) in within else LEAST_OUTSIDE_MLPS
            found[id(module)] = PlanedLayer(names.get(id(module), type(module).__name__), module, part)
    return tuple(found.values())


def _is_linear(module: nn.Module) -> bool:
    """Whether a module multiplies with a weight of its own, as far as one can tell."""
    if isinstance(module, PRODUCTS):
        return True
    if isinstance(module, nn.Embedding) or next(module.children(), None) is not None:
        return False
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return bool(own) and ("linear" in type(module).__name__.lower() or any(_is_quantized(x) for x in own))


def _is_quantized(x: torch.Tensor) -> bool:
    """Whether a tensor is a matrix of integers, as quantized weights are."""
    return x.dim() >= 2 and min(x.shape) > 1 and not x.is_floating_point() and x.dtype != torch.bool


def make_planes(layers: Sequence[PlanedLayer], most_bytes: int | None = None) -> None:
    """Make the planes of all layers that have none, or whose weights have changed.

    Args:
        layers (`Sequence[PlanedLayer]`): The layers.
        most_bytes (`int`, *optional*): Most bytes that the planes of all layers may take.

    Raises:
        UnsupportedAxisError: if a layer is of another kind, or its weights are; before any planes are made.
        ValueError: if the planes would take more bytes, or a weight is not finite.
    """
    check_layers(layers)
    needed = sum(plane_bytes(*matrix_of(layer.module).shape) for layer in layers)
    if most_bytes is not None and needed > most_bytes:
        raise ValueError(
            f"The planes for `bits_backend='nested'` would take {needed:,} bytes, but `max_plane_bytes` is "
            f"{most_bytes:,}: raise it, or pass `bits_backend='fake'`."
        )
    for layer in layers:
        if layer.part is not None:
            try:
                layer.part.planes()
            except ValueError as error:
                raise ValueError(f"`{layer.name}`: {error}") from error


def check_layers(layers: Sequence[PlanedLayer]) -> None:
    """Raise an UnsupportedAxisError for the first layer that can have no planes."""
    for layer in layers:
        _check(layer)


def _check(layer: PlanedLayer) -> None:
    reason = _reason_against(layer.module)
    if reason is not None:
        raise UnsupportedAxisError(
            f"`bits_backend='nested'` reads plain linear layers, but `{layer.name}` {reason}: pass "
            "`bits_backend='fake'`, or load the base with plain weights on one device."
        )


def _reason_against(module: nn.Module) -> str | None:
    if type(module) not in PRODUCTS:
        return f"is of the class {type(module).__name__}"
    forward, weight = vars(module).get("forward"), getattr(module, "weight", None)  # packed ones have another name
    if forward is not None and not isinstance(forward, StepPart):
        return "has a forward that another library has replaced"
    if not isinstance(weight, torch.Tensor) or type(weight) not in (nn.Parameter, torch.Tensor):
        return f"has a weight of the class {type(weight).__name__}"
    if weight.device.type == "meta":
        return "has a weight without values, on the meta device"
    if not weight.is_floating_point():
        return f"has a weight of {weight.dtype}"
    return None
