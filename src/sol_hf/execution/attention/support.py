# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Checks whether the attention of a base can be replaced."""

import functools
import inspect
from collections.abc import Callable

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from ...errors import UnsupportedAxisError
from ..decoder_layers import decoder_layers, text_config
from .implementation_name import own_name


REGISTRY = "ALL_ATTENTION_FUNCTIONS"
"""Name under which model code has the registry of attention functions."""


def attention_configs(base: PreTrainedModel) -> list[PreTrainedConfig]:
    """The configs from which the decoder layers read their attention implementation, each once.

    Usually it is one. Layers that are deep copies have a config of their own.
    """
    layers = decoder_layers(base)
    modules: list[nn.Module] = [base] if layers is None else list(layers.modules())
    configs = [vars(module).get("config") for module in modules]
    found = {id(config): config for config in configs if isinstance(config, PreTrainedConfig)}
    return list(found.values()) or [text_config(base)]


def check_attention(base: PreTrainedModel) -> None:
    """Raise [`UnsupportedAxisError`] if the attention of `base` cannot be reached through AttentionInterface."""
    config = text_config(base)
    start = f"The axis `token_keep` cannot be controlled on {type(base).__name__}"
    if not base._supports_attention_backend and not calls_interface(base):
        raise UnsupportedAxisError(f"{start}: its attention does not go through transformers' AttentionInterface.")
    if own_name(config._attn_implementation) == "eager" and _upcasts(base):
        raise UnsupportedAxisError(
            f"{start} with `reorder_and_upcast_attn` and eager attention, which goes around the attention function: "
            "load the base with attn_implementation='sdpa'."
        )
    for name in map(own_name, (part._attn_implementation for part in attention_configs(base))):
        if name not in ALL_MASK_ATTENTION_FUNCTIONS:
            raise UnsupportedAxisError(
                f"{start} with the attention implementation {name!r}: load the base with attn_implementation='sdpa' "
                "or 'eager'."
            )


def calls_interface(base: PreTrainedModel) -> bool:
    """Whether code of the decoder layers looks up its attention where transformers registers implementations.

    Many classes do so that do not say it. That all layers do is seen in every step: their parts are ticked off.
    """
    layers = decoder_layers(base)
    return layers is not None and any(_looks_up(type(module).forward) for module in layers.modules())


@functools.lru_cache
def _looks_up(forward: Callable) -> bool:
    return REGISTRY in getattr(getattr(inspect.unwrap(forward), "__code__", None), "co_names", ())


def _upcasts(base: PreTrainedModel) -> bool:
    """Whether the attention of GPT-2 goes around the attention function."""
    return any(getattr(module, "reorder_and_upcast_attn", False) for module in base.modules())
