# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""After a call, whether it finished, was refused or was interrupted, the base is as it was, and no context is left."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from fuzz.claims import claim
from sol_hf.decoding.session import DecodingSession
from sol_hf.execution.plan import ACTIVE


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True)
class Snapshot:
    """What a base is, apart from the values of its weights, which have a version."""

    modules: dict
    configs: dict
    weights: dict

    @classmethod
    def of(cls, base: PreTrainedModel) -> "Snapshot":
        """The base as it is now."""
        return cls(
            modules={name: _describe(module) for name, module in base.named_modules()},
            configs={
                name: (id(module.config), module.config._attn_implementation)
                for name, module in base.named_modules()
                if hasattr(module, "config")
            },
            weights={
                name: (id(weight), weight.data_ptr(), weight._version, weight.requires_grad, weight.grad is None)
                for name, weight in [*base.named_parameters(), *base.named_buffers()]
            },
        )


def _describe(module: nn.Module) -> tuple:
    hooks = tuple(len(getattr(module, name)) for name in HOOKS)
    return id(module), type(module), module.training, hooks, frozenset(vars(module))


def check(before: Snapshot, base: PreTrainedModel, when: str) -> None:
    """Compare the base with what it was."""
    after = Snapshot.of(base)
    for part in ("modules", "configs", "weights"):
        old, new = getattr(before, part), getattr(after, part)
        changed = [name or "the base" for name in {**old, **new} if old.get(name) != new.get(name)]
        claim(not changed, f"{when}: {part} changed:", changed[:4])
    claim(not any("forward" in vars(module) for module in base.modules()), f"{when}: a forward is left on a module")
    claim(ACTIVE.get() is None, f"{when}: a plan is still active")
    claim(DecodingSession.current() is None, f"{when}: a session is still running")
    claim(torch.is_grad_enabled(), f"{when}: gradients are off")
