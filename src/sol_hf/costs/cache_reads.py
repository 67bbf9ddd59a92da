# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What attention reads of the cache for one token, and computes.

The shapes of keys and values differ between bases, and between the layers of one base: in number of heads and of
channels, in sliding windows, in layers that have a state of a fixed size, or share the keys of another layer. They are
therefore read from a cache into which the base has put one token.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..cache.paged_layer import PagedLayer
from ..cache.window_layer import WindowLayer
from ..decoding.base_forward import base_forward
from ..decoding.forward_inputs import ForwardInputs
from ..execution.base_device import compute_device
from ..execution.watch import evaluating
from ..selection.criterion import CRITERIA
from ..selection.rule import SelectionRule
from .counted_model import CountedModel


FLOAT32 = 4


@dataclass(frozen=True)
class CachedLayer:
    """The shapes of one layer of a cache.

    Args:
        kv_heads (`int`): Key-value heads; 0 for a layer without keys.
        group (`int`): Query heads per key-value head.
        key_dim (`int`): Channels of a key.
        value_dim (`int`): Channels of a value.
        itemsize (`int`): Bytes of a number, as it is stored.
        own_itemsize (`int`): Bytes of a number in the dtype of the base.
        window (`int`, *optional*): Keys that a token sees, itself included.
        is_sparse (`bool`): Whether `token_keep` applies.
        state_bytes (`int`): Bytes of a state of a fixed size, all of which is read.
    """

    kv_heads: int
    group: int
    key_dim: int
    value_dim: int
    itemsize: int
    own_itemsize: int
    window: int | None
    is_sparse: bool
    state_bytes: int = 0


@torch.no_grad()
def cached_layers(model: CountedModel) -> list[CachedLayer]:
    """The layers of a cache of this model, after one token."""
    cache, base = model.new_cache(), model.base
    token = torch.ones(1, 1, dtype=torch.long, device=compute_device(base))
    cache.set_up_rows(1, token.device)
    with evaluating(base):
        base_forward(base, ForwardInputs(token), cache)
    config, found = base.config.get_text_config(decoder=True), []
    for index, layer in enumerate(cache.layers):
        if not isinstance(layer, PagedLayer | WindowLayer) or layer.keys is None:
            state = sum(x.nbytes for x in vars(layer).values() if isinstance(x, torch.Tensor))
            found.append(CachedLayer(0, 0, 0, 0, 0, 0, None, False, state))
            continue
        _, kv_heads, _, key_dim = layer.keys.shape
        heads = _heads(config, index)
        window = layer.sliding_window if isinstance(layer, WindowLayer) else None
        sizes = key_dim, layer.values.shape[-1], layer.stored_dtype.itemsize, layer.dtype.itemsize
        found.append(CachedLayer(kv_heads, max(1, heads // kv_heads), *sizes, window, index in cache.sparse_layers))
    return found


def _heads(config, index: int) -> int:
    """Query heads of a layer; in some families the layers have configs of their own."""
    own = getattr(config, "per_layer_config", None)
    return (own[index] if own else config).num_attention_heads


def attention_costs(
    layers: Sequence[CachedLayer], rule: SelectionRule, token_keep: float, keys: int, of_base: bool = False
) -> tuple[float, float]:
    """Bytes that the attention of all layers reads from the cache for one token, and its operations.

    Args:
        layers (`Sequence[CachedLayer]`): From [`cached_layers`].
        rule ([`SelectionRule`]): How keys are selected.
        token_keep (`float`): Fraction of the keys to read.
        keys (`int`): Keys that the step sees.
        of_base (`bool`, *optional*, defaults to `False`): Count keys and values in the dtype of the base, whatever
            they are stored in.
    """
    read, computed = 0.0, 0.0
    token_keep = 1.0 if keys <= rule.short_text_tokens else token_keep
    for layer in layers:
        read += layer.state_bytes
        if not layer.kv_heads:
            continue
        seen = keys if layer.window is None else min(keys, layer.window)
        cost = CRITERIA[rule.criterion].cost(rule, token_keep if layer.is_sparse else 1.0, seen, layer.group)
        pair, itemsize = layer.key_dim + layer.value_dim, layer.own_itemsize if of_base else layer.itemsize
        index = cost.index_bits * layer.key_dim / 8 + cost.index_values * itemsize
        index += cost.index_means * layer.key_dim * FLOAT32
        read += layer.kv_heads * (cost.moved * pair * itemsize + index)
        heads = layer.kv_heads * layer.group
        computed += 2 * heads * (cost.attended * pair + cost.scored * layer.key_dim)
    return read, computed
