# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""How a module of experts lays its weights out, as it tells transformers' own implementations of experts."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional


@dataclass(frozen=True)
class ExpertLayout:
    """The weights of all experts of a module, and what comes between them.

    Args:
        first (`torch.Tensor` of shape `(experts, outputs, channels)`): Before the activation; `(experts, channels,
            outputs)` if it is transposed.
        last (`torch.Tensor` of shape `(experts, channels, neurons)`): The last projections; `(experts, neurons,
            channels)` if it is transposed.
        biases (`tuple`): Those of both, `(experts, outputs)`, or `None`.
        is_transposed (`bool`): See above.
        neurons (`Callable`): From the outputs of the first projection to the inputs of the last.
        finish (`Callable`, *optional*): What follows the last projection of every expert.
    """

    first: torch.Tensor
    last: torch.Tensor
    biases: tuple[torch.Tensor | None, torch.Tensor | None]
    is_transposed: bool
    neurons: Callable[[torch.Tensor], torch.Tensor]
    finish: Callable[[torch.Tensor], torch.Tensor] | None

    @classmethod
    def of(cls, module: nn.Module) -> "ExpertLayout | None":
        """The layout of a module; `None` if it does not say, or its weights are spread over processes."""
        known = all(isinstance(getattr(module, name, None), bool) for name in FLAGS)
        if not known or getattr(module, "_is_expert_parallel", False):
            return None
        first = getattr(module, "gate_up_proj" if module.has_gate else "up_proj", None)
        last = getattr(module, "down_proj", None)
        if not all(isinstance(weight, torch.Tensor) and weight.dim() == 3 for weight in (first, last)):
            return None
        names = ("gate_up_proj_bias" if module.has_gate else "up_proj_bias", "down_proj_bias")
        biases = tuple(getattr(module, name) if module.has_bias else None for name in names)
        neurons = module._apply_gate if module.has_gate else module.act_fn
        finish = getattr(module, "post_expert_norm", None) if getattr(module, "has_post_expert_norm", False) else None
        return cls(first, last, biases, module.is_transposed, neurons, finish)  # type: ignore[arg-type]

    def linear(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, experts: torch.Tensor
    ) -> torch.Tensor:
        """The product of every line of `x` `(n, inputs)` with the weights of its expert `(n,)`.

        On the CPU the weights of the experts in use are read where they are; an accelerator would stall, and gathers
        them.
        """
        if x.device.type == "cpu":
            parts, order = [], []
            for expert in experts.unique().tolist():
                lines = (experts == expert).nonzero().squeeze(1)
                matrix = weight[expert].t() if self.is_transposed else weight[expert]
                parts.append(functional.linear(x[lines], matrix, None if bias is None else bias[expert]))
                order.append(lines)
            return torch.cat(parts)[torch.cat(order).argsort()]
        matrices = weight[experts] if self.is_transposed else weight[experts].transpose(1, 2)
        product = torch.bmm(x[:, None], matrices).squeeze(1)
        return product if bias is None else product + bias[experts]


FLAGS = ("has_gate", "has_bias", "is_transposed")
