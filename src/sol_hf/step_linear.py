# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The linear layers of a decode step, on the CPU in float32, by oneDNN where that is faster.

torch multiplies float32 by the BLAS that it was built with, which is at its best with many rows. A step has a row a
text, a KV refresh sixteen. oneDNN, which torch has too and uses for other dtypes, then reads the same weights at up to
twice the speed (docs/performance.md). The products differ in the order in which they add up.

While a base is instrumented, its large linear layers have an instance attribute `forward` that is a [`StepLinear`]. It
acts on decode steps and KV refreshes only, and not under `backend="reference"`.
"""

import platform
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from .crossover import run_fastest
from .step_plan import ACTIVE


LEAST_WEIGHTS = 1 << 18
"""Elements of a weight below which calling oneDNN costs more than it saves."""
MOST_LINES = 256
"""Tokens in a forward above which both are as fast."""


def supports(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether oneDNN can multiply `x` `(..., channels)` with a weight `(outputs, channels)` for us."""
    plain = type(weight) in (torch.Tensor, nn.Parameter) and weight.is_contiguous()
    return (
        plain
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
        and not torch.is_autocast_enabled("cpu")
        and has_onednn()
    )


def has_onednn() -> bool:
    """Whether torch has oneDNN, on a processor for which it was measured to be of use."""
    known = platform.machine().lower() in ("x86_64", "amd64")
    return known and torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)


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


class StepLinear:
    """What the forward of one linear layer does while its base is instrumented.

    Args:
        module (`nn.Linear`): The layer.
    """

    is_plain_product = True
    """What the MLP's fast paths ask: whether this forward computes what the weights say."""

    def __init__(self, module: nn.Linear):
        self.module = module

    def __reduce__(self) -> str:
        raise TypeError("A base cannot be copied or pickled during a generation: do it before or after.")

    @classmethod
    def all_of(cls, base: nn.Module) -> "tuple[StepLinear, ...]":
        """For every linear layer of a base that is large enough and computes what its class does."""
        linears = [module for module in base.modules() if type(module) is nn.Linear]
        return tuple(cls(module) for module in linears if module.weight.numel() >= LEAST_WEIGHTS)

    def install(self) -> Callable[[], None]:
        """Take the place of the layer's forward, unless it was replaced already.

        Returns:
            `Callable`: [`StepLinear.remove`].
        """
        vars(self.module).setdefault("forward", self)
        return self.remove

    def remove(self) -> None:
        """Undo [`install`]."""
        if vars(self.module).get("forward") is self:
            del self.module.forward

    def __call__(self, input: torch.Tensor) -> torch.Tensor:
        """The layer's output `(..., outputs)` for `(..., channels)`."""
        module, context = self.module, ACTIVE.get()
        plan = None if context is None else context.plan
        is_step = context is not None and (context.is_replay or context.is_step)
        lines = input.numel() // max(1, input.shape[-1])
        if not is_step or not 0 < lines <= MOST_LINES or not supports(input, module.weight):
            return functional.linear(input, module.weight, module.bias)
        # Rollouts are compared and resumed to the bit, which a choice by the clock would spoil.
        if plan is not None and (plan.backend == "fast" or plan.is_fanned_out):
            return multiply(input, module.weight, module.bias)
        ways: dict[str, Callable[[], torch.Tensor]] = {
            "blas": lambda: functional.linear(input, module.weight, module.bias),
            "onednn": lambda: multiply(input, module.weight, module.bias),
        }
        situation = ("linear", *module.weight.shape, lines.bit_length(), torch.get_num_threads())
        return run_fastest(situation, ways)
