# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Finds modules that run by `torch.compile`, whose graphs do not have what a decode step changes."""

from torch import nn


def check_not_compiled(model: nn.Module) -> None:
    """Raise a ValueError if a module of `model` was compiled by `module.compile()` or `torch.compile(module.forward)`.

    A step under a budget computes other parts than the step before, and runs kernels of its own, so that nearly every
    step would be compiled anew.
    """
    for module in model.modules():
        if _is_compiled(module):
            name = next(name for name, other in model.named_modules() if other is module)
            which = f"`{name}` of {type(model).__name__}" if name else type(model).__name__
            raise ValueError(
                f"{which} was compiled by `torch.compile`, which cannot run decode steps under a budget: every step "
                "computes other parts. Load the model anew and leave the compilation out. `backend='fast'` runs "
                "compiled kernels of this package instead."
            )


def _is_compiled(module: nn.Module) -> bool:
    """Whether a call of the module runs what `torch.compile` made."""
    by_method = getattr(module, "_compiled_call_impl", None) is not None
    return by_method or hasattr(module.__dict__.get("forward"), "_torchdynamo_orig_callable")
