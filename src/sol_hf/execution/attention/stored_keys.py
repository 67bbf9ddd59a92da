# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Checks and helpers for implementations that read keys and values from the storage of a cache layer."""

from collections.abc import Hashable

import torch

from ...cache.paged_layer import PagedLayer
from ...cache.sol_cache import SOLCache
from ...errors import UnsupportedAxisError
from ...kernels.cuda import triton_support
from ..plan import DeviceRows, RefreshPlan, StepPlan


MOST_CHANNELS = 256
MOST_PAGES = (1 << 16) - 1


def is_stored(layer: object, key: torch.Tensor, value: torch.Tensor | None = None) -> bool:
    """Whether the keys and values that a base attends to are those of a layer's storage, not computed from them."""
    return isinstance(layer, PagedLayer) and layer.holds(key, value)


def cache_layer_of(cache: SOLCache, module: torch.nn.Module, key: torch.Tensor) -> int | None:
    """Index of the cache layer whose keys a module attends to; `None` if they are in none.

    It is the module's own, except in a base that runs its layers several times per token, with one cache layer for
    each time, and in layers that share the keys of another one.

    Args:
        cache ([`SOLCache`]): The cache.
        module (`torch.nn.Module`): The attention.
        key (`torch.Tensor` of shape `(rows, kv_heads, slots, head_dim)`): The keys that the module attends to.
    """
    layer_idx, layers = getattr(module, "layer_idx", None), cache.layers
    own = layers[layer_idx] if isinstance(layer_idx, int) and layer_idx < len(layers) else None
    has_keys = getattr(own, "keys", None) is not None
    if has_keys and (not isinstance(own, PagedLayer) or is_stored(own, key)):
        return layer_idx
    found = next((index for index, layer in enumerate(layers) if is_stored(layer, key)), None)
    return layer_idx if found is None and has_keys else found


def sharing_part(layer: int) -> Hashable:
    """Key for `mark_done` of a decoder layer that has no keys of its own and reads those of another one."""
    return "reads the keys of another layer", layer


def refuse_computed_keys(module: torch.nn.Module, layer: PagedLayer, key: torch.Tensor) -> None:
    """Raise [`UnsupportedAxisError`] in a rollout over a base whose keys are not those in its cache."""
    if not is_stored(layer, key):
        raise UnsupportedAxisError(
            f"Rollouts cannot run on {type(module).__name__}: it computes its keys from what is in the cache, and "
            "attention over a shared prefix reads them from there."
        )


def triton_supports(query: torch.Tensor, layer: object) -> bool:
    """Whether the Triton kernels can attend from `query` `(rows, heads, tokens, head_dim)` to the keys of a layer."""
    return (
        isinstance(layer, PagedLayer)
        and triton_support.supports(query)
        and query.dtype == layer.dtype == layer.stored_dtype
        and query.stride(-1) == 1
        and max(query.shape[-1], layer.stores()[1].shape[-1]) <= MOST_CHANNELS
        and layer.stores()[0].shape[2] // layer.page_size < MOST_PAGES
    )


def rows_on(device: torch.device, cache: SOLCache, rows: int, length: int) -> DeviceRows:
    """The first key and the number of keys of every row, for a cache of `length` slots."""
    padding = cache.padding
    first_key = torch.zeros(rows, dtype=torch.long, device=device) if padding is None else padding.to(device)
    return DeviceRows(first_key, length - first_key)


def refuse_capture(plan: StepPlan | RefreshPlan | None, query: torch.Tensor) -> None:
    """Raise a ValueError in a forward that is captured in a CUDA graph, which needs the Triton kernels."""
    if plan is not None and plan.rows_on_device is not None:
        raise ValueError(
            f"CUDA graphs need the Triton kernels, which do not support this base: {query.shape[-1]} channels a head, "
            f"{query.dtype}, attention that adds to its scores or to other keys than those in the cache. Leave out "
            "`cuda_graphs`."
        )
