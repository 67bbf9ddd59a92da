# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The norms of a decode step, on a GPU, in one kernel launch each.

A step with one row launches dozens of small kernels per layer, and most of its time is launch overhead. While a base
is instrumented, its root mean square norms have an instance attribute `forward` that is a [`StepNorm`]. It is used in
decode steps and KV refreshes, and not under `backend="reference"`.
"""

from types import CodeType

import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from ..kernels.cuda import triton_support
from .plan import ACTIVE
from .step_part import StepPart


def is_rms_norm(module: nn.Module) -> bool:
    """Whether a module computes what `LlamaRMSNorm` does. Many model files of transformers have a copy of its code."""
    code = getattr(type(module).forward, "__code__", None)
    return isinstance(code, CodeType) and _instructions(code) == _instructions(LlamaRMSNorm.forward.__code__)


def _instructions(code: CodeType) -> tuple:
    return code.co_code, code.co_names, code.co_consts


class StepNorm(StepPart):
    """The forward of one norm while its base is instrumented.

    Args:
        module (`nn.Module`): The norm.
    """

    @classmethod
    def all_of(cls, base: nn.Module) -> "tuple[StepNorm, ...]":
        """One for every norm of a base that the kernel can compute."""
        return tuple(cls(module) for module in base.modules() if is_rms_norm(module))

    def __call__(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The norm's output, of the shape of its input `(..., channels)`."""
        context, module = ACTIVE.get(), self.module
        weight: torch.Tensor = module.weight  # type: ignore[assignment]
        if context is None or not context.may_round_differently or not _supports(hidden_states, weight):
            return type(module).forward(module, hidden_states)
        from ..kernels.cuda.rms_norm import rms_norm

        return rms_norm(hidden_states, weight, float(module.variance_epsilon))  # type: ignore[arg-type]


def _supports(x: torch.Tensor, weight: torch.Tensor) -> bool:
    plain = type(weight) in (torch.Tensor, nn.Parameter) and weight.device == x.device
    grad = torch.is_grad_enabled() and weight.requires_grad
    return plain and x.dtype == weight.dtype and not grad and x.numel() > 0 and triton_support.supports(x)
