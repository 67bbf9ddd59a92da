# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Linear layers as libraries of quantization make them, with a plain copy to compare with.

Every kind keeps integers of 8 bits and a scale per output, so that a plain layer with the product of both computes the
same numbers.
"""

import copy
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel


class QuantLinear(nn.Module):
    """As of GPTQ and AWQ: buffers of packed integers, no `weight`."""

    def __init__(self, linear: nn.Linear, codes: torch.Tensor, scales: torch.Tensor):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.register_buffer("qweight", codes.t().contiguous().view(torch.int32))
        self.register_buffer("scales", scales)
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.qweight.view(torch.int8).t().to(x.dtype) * self.scales.to(x.dtype)
        return functional.linear(x, weight, self.bias)


class Int8Linear(nn.Linear):
    """As of bitsandbytes and EETQ: a subclass of `nn.Linear` whose weight is one of integers."""

    def __init__(self, linear: nn.Linear, codes: torch.Tensor, scales: torch.Tensor):
        super().__init__(linear.in_features, linear.out_features, bias=False)
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.register_buffer("weight_scale", scales)
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.weight.to(x.dtype) * self.weight_scale.to(x.dtype), self.bias)


def replaced_forward(linear: nn.Linear, codes: torch.Tensor, scales: torch.Tensor) -> nn.Linear:
    """As of compressed-tensors: `nn.Linear` itself with another forward, and no `weight`."""
    del linear.weight
    linear.register_parameter("weight_packed", nn.Parameter(codes.view(torch.int32), requires_grad=False))
    linear.register_buffer("weight_scale", scales)

    def forward(x: torch.Tensor) -> torch.Tensor:
        weight = linear.weight_packed.view(torch.int8).to(x.dtype) * linear.weight_scale.to(x.dtype)
        return functional.linear(x, weight, linear.bias)

    linear.forward = forward  # type: ignore[method-assign]
    return linear


KINDS: dict[str, Callable[[nn.Linear, torch.Tensor, torch.Tensor], nn.Module]] = {
    "packed buffers": QuantLinear,
    "a weight of integers": Int8Linear,
    "a replaced forward": replaced_forward,
}


def quantized_and_plain(base: PreTrainedModel, kind: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A base with all linear layers of its decoder quantized, and one with plain weights of the same values."""
    plain = copy.deepcopy(base)
    for name, module in list(base.named_modules()):
        if type(module) is nn.Linear and name != "lm_head":
            weight = module.weight.detach()
            scales = weight.abs().amax(dim=1, keepdim=True).float() / 127
            codes = (weight / scales).round().to(torch.int8)
            plain.get_submodule(name).weight.data = codes.to(weight.dtype) * scales.to(weight.dtype)
            parent, _, child = name.rpartition(".")
            setattr(base.get_submodule(parent), child, KINDS[kind](module, codes, scales))
    return base, plain
