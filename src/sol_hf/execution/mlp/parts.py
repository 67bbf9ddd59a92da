# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The parts of an MLP: its projections and its activation, found by name and checked by their output.

Only `down(activation(gate(x)) * up(x))` and `down(activation(gate(x)))` are recognised, from plain linear layers
without hooks. Since names do not define a computation, [`find_parts`] also compares the output computed from the parts
with the output of the module.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from ..plan import active_forward


ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
}
"""Activations that the fast paths support."""
TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}
"""Largest difference from the module's own output, relative to its largest element."""


@dataclass(frozen=True)
class MLPNames:
    """Names of the children of an MLP.

    Args:
        gate (`str`): The projection before the activation; with `stacked`, the one with the weights of gate and up.
        up (`str`, *optional*): The projection that the activation is multiplied by.
        down (`str`): The last projection.
        activation (`str`): The activation function.
        stacked (`bool`): Whether `gate` has the weights of gate and up, in this order.
    """

    gate: str
    up: str | None
    down: str
    activation: str
    stacked: bool = False


KNOWN_NAMES = (
    MLPNames("gate_proj", "up_proj", "down_proj", "act_fn"),
    MLPNames("gate_up_proj", None, "down_proj", "activation_fn", stacked=True),
    MLPNames("fc1", None, "fc2", "activation_fn"),
    MLPNames("dense_h_to_4h", None, "dense_4h_to_h", "act"),
    MLPNames("up_proj", None, "down_proj", "act_fn"),
)


@dataclass(frozen=True)
class MLPParts:
    """The weights of an MLP, output-major as in `nn.Linear`, and the name of its activation.

    Args:
        gate (`torch.Tensor` of shape `(width, channels)`): Before the activation.
        up (`torch.Tensor` of shape `(width, channels)`, *optional*): The projection that is multiplied by the
            activation.
        down (`torch.Tensor` of shape `(outputs, width)`): The last projection.
        biases (`tuple`): Biases of gate, up and down; `None` for a projection without bias.
        activation (`str`): A key of `ACTIVATIONS`.
        sources (`dict[str, nn.Linear]`): The projections that the weights belong to, by their names in the MLP.
        function (`tuple[str, Callable]`, *optional*): The activation itself, and its name in the MLP.
    """

    gate: torch.Tensor
    up: torch.Tensor | None
    down: torch.Tensor
    biases: tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]
    activation: str
    sources: dict[str, nn.Linear]
    function: tuple[str, Callable] | None = None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The MLP's output for `x` `(..., channels)` in plain torch."""
        hidden = ACTIVATIONS[self.activation](functional.linear(x, self.gate, self.biases[0]))
        if self.up is not None:
            hidden = hidden * functional.linear(x, self.up, self.biases[1])
        return functional.linear(hidden, self.down, self.biases[2])


def find_parts(module: nn.Module) -> MLPParts | None:
    """The parts of an MLP, `None` if it is not of a known kind."""
    children = dict(module.named_children())
    for names in KNOWN_NAMES:
        needed = {names.gate, names.down, names.activation} | ({names.up} if names.up else set())
        extra = [child for name, child in children.items() if name not in needed]
        activation = getattr(module, names.activation, None)
        if needed - {names.activation} <= set(children) and all(isinstance(child, nn.Dropout) for child in extra):
            parts = _take(children, names, activation) if callable(activation) else None
            if parts is not None and _computes_the_same(module, parts):
                return parts
    return None


def _take(children: dict[str, Any], names: MLPNames, activation: Callable) -> MLPParts | None:
    sources = {name: children[name] for name in (names.gate, names.up, names.down) if name}
    linear = all(is_plain_linear(source) for source in sources.values())
    known = _name_activation(activation) if linear and is_plain_activation(activation) else None
    if known is None or len({(x.dtype, x.device) for x in tensors_of(sources)}) > 1:
        return None
    weights = [source.weight.detach() for source in sources.values()]
    biases = [None if source.bias is None else source.bias.detach() for source in sources.values()]
    gate, up, down = weights[0], weights[1] if names.up else None, weights[-1]
    gate_bias, up_bias, down_bias = biases[0], biases[1] if names.up else None, biases[-1]
    if names.stacked:
        gate, up = gate.chunk(2)
        gate_bias, up_bias = (None, None) if gate_bias is None else gate_bias.chunk(2)
    if down.shape[1] != len(gate) or (up is not None and up.shape != gate.shape):
        return None  # what is between the projections is more than an activation
    function = names.activation, activation
    return MLPParts(gate, up, down, (gate_bias, up_bias, down_bias), known, sources, function)


def tensors_of(sources: Mapping[str, nn.Linear | Conv1D]) -> list[torch.Tensor]:
    """Weights and biases of projections."""
    tensors = [tensor for source in sources.values() for tensor in (source.weight, source.bias)]
    return [tensor for tensor in tensors if tensor is not None]


def is_plain_linear(module: nn.Module) -> bool:
    """Whether a projection is a plain linear layer on plain tensors, without hooks or a replaced forward.

    A tensor subclass, such as that of a quantized weight, may have no memory at its address.
    """
    if type(module) is not nn.Linear or _is_changed(module):
        return False
    return all(type(x) in (nn.Parameter, torch.Tensor) and x.is_contiguous() for x in tensors_of({"": module}))


def is_plain_conv1d(module: nn.Module) -> bool:
    """The same for `Conv1D`, whose weight is input-major."""
    if type(module) is not Conv1D or _is_changed(module):
        return False
    return all(type(x) is nn.Parameter and x.is_contiguous() for x in module.parameters())


def is_plain_activation(function: Callable) -> bool:
    """Whether an activation has no weights, no hooks and no replaced forward."""
    if not isinstance(function, nn.Module):
        return True
    return not any(_is_changed(module) for module in function.modules()) and not function.state_dict()


def _is_changed(module: nn.Module) -> bool:
    forward = vars(module).get("forward")
    replaced = forward is not None and not getattr(forward, "is_plain_product", False)
    return bool(module._forward_hooks or module._forward_pre_hooks or replaced)


def _name_activation(activation: Callable) -> str | None:
    """The known activation that gives the same values, also for large inputs, where some activations are clipped."""
    fine, coarse = (torch.linspace(-end, end, 97, dtype=torch.float32) for end in (6, 100))
    x = torch.cat([fine, coarse])
    values = activation(x)
    for name, function in ACTIVATIONS.items():
        if values.shape == x.shape and torch.allclose(values, function(x), atol=1e-6, rtol=1e-5):
            return name
    return None


def _computes_the_same(module: nn.Module, parts: MLPParts) -> bool:
    if parts.gate.dtype not in TOLERANCES or parts.gate.device.type == "meta":
        return False
    x = torch.linspace(-3, 3, parts.gate.shape[1], dtype=torch.float64).mul(7).sin()
    x = x.to(parts.gate.device, parts.gate.dtype)[None, None]
    with torch.no_grad(), active_forward():  # its projections may be under the plan of a running step
        own, ours = type(module).forward(module, x), parts(x)
    if own.shape != ours.shape:
        return False
    difference, scale = (own - ours).abs().amax(), own.abs().amax()
    return bool(difference <= TOLERANCES[x.dtype] * scale)
