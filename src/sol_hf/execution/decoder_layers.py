# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Finds the text decoder of any base and its layers, never those of a vision or audio tower.

A tower may have as many layers as the text decoder. It has a config of another class.
"""

from collections.abc import Iterator

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel


def decoder_layers(base: PreTrainedModel) -> nn.ModuleList | None:
    """The list of decoder layers: of the lists with as many entries as there are hidden layers, the heaviest."""
    wanted = layer_count(base)
    lists = [m for m in text_modules(base) if isinstance(m, nn.ModuleList) and len(m) == wanted]
    return max(lists, key=_parameters, default=None)


def layer_count(base: PreTrainedModel) -> int | None:
    """Decoder layers according to the config; `None` if it does not say."""
    return getattr(text_config(base), "num_hidden_layers", None)


def text_config(base: PreTrainedModel) -> PreTrainedConfig:
    """The config of the text decoder; for some encoder-decoder families transformers makes a copy."""
    return base.config.get_text_config(decoder=True)


def text_modules(base: PreTrainedModel) -> Iterator[nn.Module]:
    """The text decoder of a base and all modules in it, without the towers for other kinds of input."""
    decoder = base.get_decoder() if hasattr(base, "get_decoder") else None
    is_head = decoder is base.get_output_embeddings()  # some bases call their LM head a decoder
    root = decoder if isinstance(decoder, nn.Module) and not is_head else base
    return _without_towers(root, (type(base.config), type(text_config(base))))


def _without_towers(module: nn.Module, own: tuple[type, ...]) -> Iterator[nn.Module]:
    yield module
    for child in module.children():
        config = vars(child).get("config")
        if not isinstance(config, PreTrainedConfig) or type(config) in own:
            yield from _without_towers(child, own)


def _parameters(layers: nn.ModuleList) -> int:
    return sum(parameter.numel() for parameter in layers.parameters())
