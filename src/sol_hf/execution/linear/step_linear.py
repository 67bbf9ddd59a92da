# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What the linear layers of a base do in a decode step, on the CPU.

A product with few tokens takes as long as it takes to read the weights. torch's own code for float32 is made for many
tokens. A decode step has one token per row, a KV refresh one per step of the episode. Other implementations read the
same weights faster ([measured](docs/performance.md)); their products differ in the order of the sums.

While a base is instrumented, its large linear layers have an instance attribute `forward` that is a [`StepLinear`]. It
acts in decode steps and KV refreshes only, and not under `backend="reference"`.
"""

import platform

import torch
from torch import nn
from torch.nn import functional

from ..plan import ACTIVE
from ..step_part import StepPart
from .operation import LINEAR, LinearCall


LEAST_WEIGHTS = 1 << 16
"""Elements of a weight below which choosing an implementation costs more than it saves."""
MOST_TOKENS = 256
"""Tokens in a forward above which all implementations are as fast."""


def supports(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether `x` `(..., channels)` times a weight `(outputs, channels)` can be computed by others than torch."""
    plain = type(weight) in (torch.Tensor, nn.Parameter) and weight.is_contiguous()
    return (
        plain
        and x.shape[-1] == weight.shape[1]
        and x.dtype == weight.dtype
        and x.dtype in (torch.float32, torch.bfloat16)
        and x.device.type == weight.device.type == "cpu"
        and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
        and not torch.is_autocast_enabled("cpu")
        and platform.machine().lower() in ("x86_64", "amd64")  # for others nothing was measured
    )


class StepLinear(StepPart):
    """What the forward of one linear layer does while its base is instrumented.

    Args:
        module (`nn.Linear`): The layer.
    """

    module: nn.Linear

    is_plain_product = True
    """Tells the MLP's fast paths that this forward computes nothing but the product with the weights."""

    @classmethod
    def all_of(cls, base: nn.Module) -> "tuple[StepLinear, ...]":
        """For every linear layer of a base that is large enough and computes what its class does."""
        linears = [module for module in base.modules() if type(module) is nn.Linear]
        return tuple(cls(module) for module in linears if module.weight.numel() >= LEAST_WEIGHTS)

    def __call__(self, input: torch.Tensor) -> torch.Tensor:
        """The layer's output `(..., outputs)` for `(..., channels)`."""
        module, context = self.module, ACTIVE.get()
        tokens = input.numel() // max(1, input.shape[-1])
        if (
            context is None
            or not context.may_round_differently
            or not 0 < tokens <= MOST_TOKENS
            or not supports(input, module.weight)
        ):
            return functional.linear(input, module.weight, module.bias)
        # Where `backend="auto"` may not measure, as in rollouts, it takes what `"fast"` takes.
        is_timed = context.is_timed
        output = LINEAR.run(LinearCall(input, module.weight, module.bias), "auto" if is_timed else "fast", is_timed)
        assert output is not None, "torch's own product serves every call"
        return output
