# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""How many of the weights of a mixture of experts one token reads."""

from torch import nn

from ..execution.mlp.discovery import holds_experts
from ..execution.mlp.expert_layout import ExpertLayout


TOP_K = """num_experts_per_tok num_experts_per_token experts_per_token top_k_experts moe_topk moe_top_k moe_k
    top_k""".split()
"""What configs call the number of experts that a token runs through."""


def share_read(module: nn.Module) -> float:
    """Share of the parameters of one module that a token reads: that of the chosen experts, 1 for other modules.

    It is 1, too, for experts whose config does not say how many are chosen.
    """
    config = vars(module).get("config")
    if config is None or not holds_experts(module):
        return 1.0
    experts = next(len(weight) for weight in module.parameters(recurse=False) if weight.dim() == 3)
    chosen = next((k for k in (getattr(config, name, None) for name in TOP_K) if isinstance(k, int)), experts)
    return min(1.0, chosen / experts)


def layout_of(module: nn.Module) -> ExpertLayout | None:
    """How the weights of a module of experts are laid out; `None` for other modules."""
    return ExpertLayout.of(module) if holds_experts(module) else None
