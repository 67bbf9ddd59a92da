# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Whether a base can run over the cache of a call under a budget."""

import inspect

from torch import nn
from transformers import PreTrainedModel

from .decoder_layers import decoder_layers, text_config
from .own_loop import has_own_loop


def reason_against_cache(base: PreTrainedModel) -> str | None:
    """Why a base cannot keep its keys and values in a cache that it is given; `None` if it can."""
    name = type(base).__name__
    if has_own_loop(base):
        return f"the `generate` of {name} is not the loop of transformers"
    if not base._supports_default_dynamic_cache():
        return f"{name} keeps a cache of its own kind, and does not run over one that it is given"
    if not any("past_key_values" in arguments_of(module) for module in (base, base.get_decoder())):
        return f"the forward of {name} takes no `past_key_values`, so it computes the whole text at every token"
    if _sees_later_tokens(base):
        return f"the attention of {name} is not causal; load it as a decoder, with `is_decoder=True` in its config"
    crossing = _layers_over_images(base)
    if crossing:
        layers = f"layers {', '.join(map(str, crossing))} attend" if crossing[1:] else f"layer {crossing[0]} attends"
        return f"{layers} to images and not to the text, and their keys cannot be taken back with those of a token"
    return None


def _sees_later_tokens(base: PreTrainedModel) -> bool:
    """Whether the base is an encoder: its config is not that of a decoder, and its attention says that it looks ahead.

    Keys would then change with every later token, so that they cannot be kept.
    """
    layers = decoder_layers(base)
    if layers is None or getattr(text_config(base), "is_decoder", True):
        return False
    causal = [vars(module)["is_causal"] for module in layers.modules() if "is_causal" in vars(module)]
    return bool(causal) and not any(causal)


def _layers_over_images(base: PreTrainedModel) -> list[int]:
    """The decoder layers that have attention to the states of another tower instead of attention to the text."""
    layers = enumerate(decoder_layers(base) or [])
    crosses = {i: any("cross_attention_states" in arguments_of(x) for x in layer.children()) for i, layer in layers}
    return [index for index, has_cross in crosses.items() if has_cross]


def arguments_of(module: nn.Module) -> frozenset[str]:
    """Names in the signature of a module's forward."""
    return frozenset(inspect.signature(type(module).forward).parameters)
