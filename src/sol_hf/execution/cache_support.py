# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Whether a base can run over the cache of a call under a budget."""

import inspect

from torch import nn
from transformers import PreTrainedModel


def reason_against_cache(base: PreTrainedModel) -> str | None:
    """Why a base cannot keep its keys and values in a cache that it is given; `None` if it can."""
    name = type(base).__name__
    if not base._supports_default_dynamic_cache():
        return f"{name} keeps a cache of its own kind, and does not run over one that it is given"
    if not any("past_key_values" in arguments_of(module) for module in (base, base.get_decoder())):
        return f"the forward of {name} takes no `past_key_values`, so it computes the whole text at every token"
    return None


def arguments_of(module: nn.Module) -> frozenset[str]:
    """Names in the signature of a module's forward."""
    return frozenset(inspect.signature(type(module).forward).parameters)
