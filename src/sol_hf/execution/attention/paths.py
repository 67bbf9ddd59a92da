# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Ways to compute the attention of a decode step, and which of them a layer takes.

    reference   gathers the selected keys and values and attends to the copies; all of them, if nothing is selected
    masked      attends to all keys under a mask: no copies, for contexts so short that reading is not what costs
    fast        the compiled kernel, which reads the selected pages in place (CPU: numba, float32 and bfloat16;
                CUDA: Triton, float16 too)

`backend="auto"` takes the one that is measured to be the fastest, and below `LEAST_KEYS` keys the reference. On CUDA
it takes the kernel, which has fewer launches and reads less.
"""

from collections.abc import Callable

import torch
from torch.nn.functional import scaled_dot_product_attention

from ...cache.paged_layer import PagedLayer
from ...cache.sol_cache import SOLCache
from ...kernels.cpu import chunk_attention
from ...selection.quest import pages_to_read
from ...selection.rule import Selection
from ..autotune import run_fastest
from ..plan import AttentionKernel, ChunkKernel, DeviceRows, RefreshPlan, StepPlan
from . import numba_paged, triton_paged


LEAST_KEYS = 32
"""A kernel that has to be compiled or loaded first does not pay for a text of a few words."""
HIDDEN = -1e4
"""What a mask adds to the score of a key that is not to be seen, or less."""


def pack_groups(x: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """Queries `(rows, heads, tokens, dim)` by key-value head, `(rows, kv_heads, group * tokens, dim)`."""
    rows, heads, tokens, dim = x.shape
    return x.reshape(rows, kv_heads, heads // kv_heads * tokens, dim)


def attend_packed(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    """Attention of several new tokens over all keys, which are not repeated for the heads of a group.

    Args:
        query (`torch.Tensor` of shape `(rows, heads, tokens, head_dim)`): Queries of the new tokens.
        key (`torch.Tensor` of shape `(rows, kv_heads, slots, head_dim)`): All cached keys.
        value (`torch.Tensor` of shape `(rows, kv_heads, slots, head_dim)`): All cached values.
        mask (`torch.BoolTensor` of shape `(rows or 1, 1 or heads, tokens, slots)`): Who sees whom.
        scaling (`float`, *optional*): Scale of the scores; `1 / sqrt(head_dim)` by default.

    Returns:
        `torch.Tensor` of shape `(rows, tokens, heads, head_dim)`.
    """
    rows, heads, tokens, _ = query.shape
    kv_heads, slots = key.shape[1], key.shape[2]
    group = heads // kv_heads
    if mask.shape[1] == 1:
        packed_mask = mask.expand(-1, group, -1, -1).reshape(len(mask), 1, group * tokens, slots)
    else:
        packed_mask = mask.reshape(len(mask), kv_heads, group * tokens, slots)
    output = scaled_dot_product_attention(
        pack_groups(query, kv_heads), key, value, attn_mask=packed_mask, scale=scaling
    )
    return output.reshape(rows, heads, tokens, -1).transpose(1, 2).contiguous()


def attend_refresh(
    refresh: RefreshPlan,
    layer_idx: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: object,
    scaling: float | None,
) -> torch.Tensor | None:
    """Attention of the tokens of a KV refresh, `(rows, tokens, heads, head_dim)`, faster than the base's.

    `None` if there is no faster way; arguments as of [`attend_packed`].

    Raises:
        ValueError: in a captured forward, if the Triton kernel cannot be used.
    """
    if isinstance(mask, torch.Tensor) and mask.dtype != torch.bool:
        return None  # it may do more than hide
    layer = refresh.cache.layers[layer_idx]
    kernel = chunk_kernel(refresh, layer, query, key, value) if isinstance(layer, PagedLayer) else None
    if kernel is not None:
        return kernel(query, layer, scaling)
    refuse_capture(refresh, query)
    if isinstance(mask, torch.Tensor) and mask.dim() == 4 and query.shape[1] > key.shape[1]:
        return attend_packed_fastest(refresh.backend, query, key, value, mask, scaling)
    return None


def attend_packed_fastest(
    backend: str,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scaling: float | None,
) -> torch.Tensor:
    """[`attend_packed`] in a KV refresh, by the way that a backend other than `"reference"` prefers."""
    arguments = query, key, value, mask, scaling
    if not chunk_attention.supports(query, key, value, mask):
        return attend_packed(*arguments)
    if backend == "fast":
        return chunk_attention.attend_packed(*arguments)
    ways = {
        "sdpa": lambda: attend_packed(*arguments),
        "compiled": lambda: chunk_attention.attend_packed(*arguments),
    }
    shape = (*query.shape, key.shape[1], value.shape[3], key.shape[2].bit_length())
    return run_fastest(("refresh", shape, torch.get_num_threads()), ways)


def chunk_kernel(
    refresh: RefreshPlan, layer: PagedLayer, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> ChunkKernel | None:
    """The Triton kernel for a KV refresh, if it can be used for a layer; made once for all of a device."""
    if not triton_paged.supports(query, layer) or not holds(layer, key, value):
        return None
    kernels = refresh.chunk_kernels
    if query.device not in kernels:
        rows = refresh.rows_on_device or rows_on(query.device, refresh.cache, len(query), layer.length)
        kernels[query.device] = triton_paged.TritonChunkAttention(rows.first, rows.count)
    return kernels[query.device]


def rows_on(device: torch.device, cache: SOLCache, rows: int, length: int) -> DeviceRows:
    """Where the keys of every row begin and how many there are, for a cache of `length` slots."""
    padding = cache.padding
    first = torch.zeros(rows, dtype=torch.long, device=device) if padding is None else padding.to(device)
    return DeviceRows(first, length - first)


def refuse_capture(told: StepPlan | RefreshPlan | None, query: torch.Tensor) -> None:
    """Raise a ValueError in a captured forward, which knows no other way than the Triton kernels."""
    if told is not None and told.rows_on_device is not None:
        raise ValueError(
            f"CUDA graphs need the Triton kernels, which do not support this base: {query.shape[-1]} channels a head, "
            f"{query.dtype}, attention that adds to its scores or to other keys than those in the cache. Leave out "
            "`cuda_graphs`."
        )


def attend_masked(
    selection: Selection,
    first: torch.Tensor,
    start: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
) -> torch.Tensor:
    """Attention of one new token per row over all keys, those outside of a selection masked.

    Args:
        selection ([`Selection`]): Ranks of the keys to read.
        first (`torch.Tensor` of shape `(rows,)`): Slot of rank 0.
        start (`torch.Tensor` of shape `(rows,)`): First slot that holds a real key.
        query (`torch.Tensor` of shape `(rows, heads, 1, head_dim)`): Query of the new token.
        key (`torch.Tensor` of shape `(rows, kv_heads, slots, head_dim)`): All cached keys.
        value (`torch.Tensor` of shape `(rows, kv_heads, slots, head_dim)`): All cached values.
        scaling (`float`, *optional*): Scale of the scores; `1 / sqrt(head_dim)` by default.

    Returns:
        `torch.Tensor` of shape `(rows, 1, heads, head_dim)`.
    """
    rows, heads, _, _ = query.shape
    slots, choosers = key.shape[2], selection.ranks.shape[1]
    slot = selection.ranks + first[:, None, None]
    in_use = selection.in_use & (slot >= start[:, None, None]) & (slot < slots)
    # Places that are not in use go to one column more, which is cut off.
    index = torch.where(in_use, slot, slots)
    mask = torch.zeros(rows, choosers, slots + 1, dtype=torch.bool, device=key.device)
    mask = mask.scatter_(2, index, True)[..., :slots]
    if choosers not in (1, heads):
        mask = mask.repeat_interleave(heads // choosers, dim=1)
    return attend_packed(query, key, value, mask[:, :, None], scaling)


def only_hides(plan: StepPlan, mask: object) -> bool:
    """Whether an attention mask tells which keys are visible and nothing else, as far as the host can see.

    Any mask that is not a tensor of floats does. On the CPU the values of one are looked at, once if all layers get
    the same; elsewhere, where looking would stall the device, only whether it has one for each head.
    """
    if not isinstance(mask, torch.Tensor) or not mask.is_floating_point():
        return True
    if mask.device.type != "cpu":
        return mask.dim() < 4 or mask.shape[1] == 1
    seen = plan.shared.hiding_masks
    if not any(mask is other for other in seen):
        if not bool(((mask == 0) | (mask <= HIDDEN)).all()):
            return False
        seen.append(mask)
    return True


def holds(layer: object, key: torch.Tensor, value: torch.Tensor | None = None) -> bool:
    """Whether keys and values that a base attends to are those in a layer's storage, not made from them."""
    if not isinstance(layer, PagedLayer) or key.data_ptr() != layer.keys.data_ptr():
        return False
    return value is None or value.data_ptr() == layer.values.data_ptr()


def usable_kernel(
    plan: StepPlan,
    layer_idx: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
) -> AttentionKernel | None:
    """[`compiled_kernel`] if the base attends to the keys and values of the layer itself, which is what it reads."""
    if holds(plan.cache.layers[layer_idx], key, value):
        return compiled_kernel(plan, layer_idx, query, scaling)
    refuse_capture(plan, query)
    return None


def compiled_kernel(
    plan: StepPlan, layer_idx: int, query: torch.Tensor, scaling: float | None
) -> AttentionKernel | None:
    """The compiled kernel, set up for this step and layers of this shape; `None` where it cannot be used."""
    layer = plan.cache.layers[layer_idx]
    is_paged = plan.token_keep is None or plan.rule.criterion == "quest"
    # Dense attention on a GPU is left to the base, unless the kernels were asked for.
    takes_triton = plan.backend == "fast" or (plan.backend == "auto" and plan.token_keep is not None)
    if takes_triton and is_paged and triton_paged.supports(query, layer):
        return triton_kernel(plan, query, layer, scaling)
    refuse_capture(plan, query)
    if plan.backend == "reference" or not is_paged or not isinstance(layer, PagedLayer):
        return None
    if (plan.backend == "auto" and layer.length < LEAST_KEYS) or not numba_paged.supports(query, layer):
        return None
    kernels = plan.shared.kernels.setdefault("numba", [])
    for kernel in kernels:
        if kernel.fits(query, layer, scaling):
            return kernel
    rows, padding = len(query), plan.cache.padding
    first = torch.zeros(rows, dtype=torch.long) if padding is None else padding
    wanted = pages_to_read(plan.token_keep, layer.length - first, plan.rule)
    kernels.append(numba_paged.PagedAttention(query, layer, first, wanted, plan.rule, scaling))
    return kernels[-1]


def triton_kernel(plan: StepPlan, query: torch.Tensor, layer: PagedLayer, scaling: float | None) -> AttentionKernel:
    """The Triton kernels, set up for this step. In a captured step the device knows how many keys a row has."""
    kernels = plan.shared.kernels.setdefault("triton", [])
    for kernel in kernels:
        if kernel.fits(query, layer, scaling):
            return kernel
    rows = len(query)
    at = plan.rows_on_device or rows_on(query.device, plan.cache, rows, layer.length)
    keep = None if plan.token_keep is None else plan.token_keep.to(query.device)
    kernels.append(
        triton_paged.TritonPagedAttention(keep, at.first, at.count, plan.cache.padding_range, plan.rule, scaling)
    )
    return kernels[-1]


def attend(
    plan: StepPlan, query: torch.Tensor, key: torch.Tensor, ways: dict[str, Callable[[], torch.Tensor]]
) -> torch.Tensor:
    """Attention of a decode step by the way that the plan's backend prefers.

    Args:
        plan ([`StepPlan`]): Backend, and how much is read.
        query (`torch.Tensor` of shape `(rows, heads, 1, head_dim)`): Query of the new token.
        key (`torch.Tensor` of shape `(rows, kv_heads, slots, head_dim)`): All cached keys.
        ways (`dict[str, Callable]`): Functions without arguments, by name; `"reference"` is always there.
    """
    is_auto = plan.backend == "auto"
    if not is_auto or query.device.type != "cpu" or key.shape[2] < LEAST_KEYS:
        takes_kernel = plan.backend == "fast" or (is_auto and query.device.type != "cpu")
        return ways["fast" if takes_kernel and "fast" in ways else "reference"]()
    if plan.shared.kept_share is None:
        # Of a dense plan the reference is the base's own attention, which is another thing than gathering nearly all.
        plan.shared.kept_share = "all" if plan.token_keep is None else round(8 * float(plan.token_keep.mean()))
    shape = (*query.shape[:2], key.shape[1], key.shape[3], query.dtype, key.shape[2].bit_length())
    settings = (plan.rule, plan.shared.kept_share, tuple(ways), torch.get_num_threads())
    return run_fastest(("attention", shape, settings), ways)
