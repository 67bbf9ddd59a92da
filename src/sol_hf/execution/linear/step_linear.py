# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The linear layers of a base in a decode step, on the CPU.

The time of a product with few tokens is the time to read the weights. torch's own code for float32 is optimized for
many tokens, but a decode step has one token per row, and a KV refresh one per step of the episode. Other
implementations read the same weights faster ([measured](docs/performance.md)). Their results differ by rounding, since
they add up in another order.

While a base is instrumented, its large linear layers have an instance attribute `forward` that is a [`StepLinear`]. It
is used in decode steps and KV refreshes only, and not under `backend="reference"`.
"""

import platform

import torch
from torch import nn
from torch.nn import functional

from ..plan import ACTIVE
from ..step_part import StepPart
from .operation import LINEAR, LinearCall


LEAST_WEIGHTS = 1 << 16
"""Number of weights below which the overhead of choosing an implementation exceeds the gain."""
MOST_TOKENS = 256
"""Number of tokens in a forward above which all implementations are equally fast."""
IS_MEASURED = platform.machine().lower() in ("x86_64", "amd64")
"""Other processors were not measured."""


def supports(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether `x` `(..., channels)` and a `weight` `(outputs, channels)` have other implementations than torch's."""
    plain = type(weight) in (torch.Tensor, nn.Parameter) and weight.is_contiguous()
    return (
        plain
        and x.shape[-1] == weight.shape[1]
        and x.dtype == weight.dtype
        and x.dtype in (torch.float32, torch.bfloat16)
        and x.device.type == weight.device.type == "cpu"
        and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
        and not torch.is_autocast_enabled("cpu")
        and IS_MEASURED
    )


class StepLinear(StepPart):
    """The forward of one linear layer while its base is instrumented.

    Args:
        module (`nn.Linear`): The layer.
    """

    module: nn.Linear

    is_plain_product = True
    """Read by the MLP's fast paths: this forward computes only the product with the weights, and adds the bias."""

    @classmethod
    def all_of(cls, base: nn.Module) -> "tuple[StepLinear, ...]":
        """One for every linear layer of a base that is large enough and whose class has the standard forward."""
        linears = [module for module in base.modules() if type(module) is nn.Linear]
        return tuple(cls(module) for module in linears if module.weight.numel() >= LEAST_WEIGHTS)

    def __call__(self, input: torch.Tensor) -> torch.Tensor:
        """The layer's output `(..., outputs)` for an input `(..., channels)`."""
        module, context = self.module, ACTIVE.get()
        tokens = input.numel() // max(1, input.shape[-1])
        if (
            context is None
            or not context.may_round_differently
            or not 0 < tokens <= MOST_TOKENS
            or not supports(input, module.weight)
        ):
            return functional.linear(input, module.weight, module.bias)
        backend = "auto" if context.told is None else context.told.backend
        output = LINEAR.run(LinearCall(input, module.weight, module.bias), backend)
        assert output is not None, "torch's own product can compute every call"
        return output
