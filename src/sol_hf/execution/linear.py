# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The linear layers of a decode step, on the CPU, by what reads their weights the fastest.

torch multiplies float32 by the BLAS that it was built with, which is at its best with many lines. A step has a line a
text, a KV refresh sixteen. The same weights are read faster (docs/performance.md), and products differ in the order in
which they add up, by

    onednn     which torch has too and uses for bfloat16
    compiled   a kernel of ours, for few lines: up to 32 in float32, up to 8 in bfloat16 (kernels/numba_linear.py)

While a base is instrumented, its large linear layers have an instance attribute `forward` that is a [`StepLinear`]. It
acts on decode steps and KV refreshes only, and not under `backend="reference"`.
"""

import platform
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from ..kernels.cpu import linear as few_lines
from .autotune import run_fastest
from .plan import ACTIVE
from .step_part import StepPart


LEAST_WEIGHTS = 1 << 16
"""Elements of a weight below which choosing a way costs more than it saves."""
MOST_LINES = 256
"""Tokens in a forward above which all are as fast."""


def supports(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether `x` `(..., channels)` times a weight `(outputs, channels)` can go in another way than torch's."""
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


def has_onednn() -> bool:
    """Whether torch has oneDNN and may use it."""
    return torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)


def multiply(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`functional.linear` by oneDNN, which must support the arguments.

    Args:
        x (`torch.Tensor` of shape `(..., channels)`): Input.
        weight (`torch.Tensor` of shape `(outputs, channels)`): As in `nn.Linear`.
        bias (`torch.Tensor` of shape `(outputs,)`, *optional*): Added to the product.

    Returns:
        `torch.Tensor` of shape `(..., outputs)`.
    """
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def ways_to_multiply(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> dict[str, Callable[[], torch.Tensor]]:
    """Ways to compute `functional.linear` of arguments that [`supports`] allows; the last is likely the fastest."""
    ways = {"blas": lambda: functional.linear(x, weight, bias)}
    if x.dtype == torch.float32 and has_onednn():
        ways["onednn"] = lambda: multiply(x, weight, bias)
    if few_lines.supports(x, weight):
        ways["compiled"] = lambda: few_lines.multiply(x, weight, bias)
    return ways


class StepLinear(StepPart):
    """What the forward of one linear layer does while its base is instrumented.

    Args:
        module (`nn.Linear`): The layer.
    """

    module: nn.Linear

    is_plain_product = True
    """What the MLP's fast paths ask: whether this forward computes what the weights say."""

    @classmethod
    def all_of(cls, base: nn.Module) -> "tuple[StepLinear, ...]":
        """For every linear layer of a base that is large enough and computes what its class does."""
        linears = [module for module in base.modules() if type(module) is nn.Linear]
        return tuple(cls(module) for module in linears if module.weight.numel() >= LEAST_WEIGHTS)

    def __call__(self, input: torch.Tensor) -> torch.Tensor:
        """The layer's output `(..., outputs)` for `(..., channels)`."""
        module, context = self.module, ACTIVE.get()
        lines = input.numel() // max(1, input.shape[-1])
        if (
            context is None
            or not context.may_round_differently
            or not 0 < lines <= MOST_LINES
            or not supports(input, module.weight)
        ):
            return functional.linear(input, module.weight, module.bias)
        ways = ways_to_multiply(input, module.weight, module.bias)
        if not context.is_timed:
            return list(ways.values())[-1]()
        shape = (*module.weight.shape, input.dtype, lines.bit_length())
        return run_fastest(("linear", shape, tuple(ways), torch.get_num_threads()), ways)
