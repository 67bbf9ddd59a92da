# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The base's part of a decode step, and a KV refresh, as CUDA graphs for all tokens, actions and lengths.

A graph runs the same kernels on the same addresses every time. Everything that differs from step to step is therefore
read from buffers on the device: the tokens, their positions, the levels of the action, the number of keys of a row.
Keys and values stay in the cache's own storage, which is allocated for `capacity` tokens. New ones are written to
slots whose numbers are on the device. The controller and the ledger run outside of the graphs.

Without a GPU nothing is captured, and every forward runs the same function on the same buffers. The tests use this to
check that the result equals that of a step without graphs, that every forward launches the same operations on the same
shapes, and that none of them waits for the device.
"""

import weakref
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from ..cache.paged_layer import DevicePlaces, PagedLayer
from ..cache.sol_cache import SOLCache
from ..kernels.cuda import triton_support
from ..selection.criterion import CRITERIA
from ..selection.rule import SelectionRule
from .attention.implementation_name import own_name
from .linear.step_linear import StepLinear
from .mlp.copying_part import CopyingPart
from .plan import DeviceRows, Parts, RefreshPlan, StepPlan, active_forward, planned_levels


WARM_UPS = 3
"""Runs before a capture, in which libraries allocate memory and kernels are compiled."""


@dataclass(frozen=True)
class Buffers:
    """What is read: tokens and positions `(rows, number)`, levels `(rows, axes)`, first key and count `(rows,)`."""

    tokens: torch.Tensor
    positions: torch.Tensor
    levels: torch.Tensor
    first_key: torch.Tensor
    count: torch.Tensor


class CapturedForward:
    """Forwards of a base over one cache, run from a CUDA graph where there is a GPU.

    Decode steps, or KV refreshes: dense, and without logits.

    Args:
        base (`PreTrainedModel`): The instrumented base.
        cache ([`SOLCache`]): Cache with at least one token.
        rule ([`SelectionRule`]): How keys are selected; its criterion must have kernels.
        dense_axes (`Collection[str]`): Axes that are dense at every step.
        capacity (`int`): Tokens, padding included, for which the cache allocates storage.
        refreshed (`int`, *optional*, defaults to 0): Tokens per row that a KV refresh processes; 0 for decode steps.
        parts (`Parts`, *optional*): The parts that have to carry out the axes of a step's plan.
        bits_backend (`str`, *optional*, defaults to `"fake"`): How `bits` is computed, see [`StepPlan`].

    Raises:
        ValueError: if base or cache depend on the length of the text in a way that a graph cannot represent.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        cache: SOLCache,
        rule: SelectionRule,
        dense_axes: Collection[str],
        capacity: int,
        refreshed: int = 0,
        parts: Parts | None = None,
        bits_backend: str = "fake",
    ):
        check_capture(base, cache, rule)
        check_room(cache, capacity)
        self.base, self.rule, self.dense_axes, self.capacity = base, rule, frozenset(dense_axes), capacity
        self.is_refresh, self.number, self.parts = refreshed > 0, refreshed or 1, parts or {}
        self.bits_backend = bits_backend
        self._cache = weakref.ref(cache)  # a weak reference: the cache must be freed when only the graphs refer to it
        kinds = (CopyingPart, StepLinear) if bits_backend == "nested" else CopyingPart
        self._copying = [m.forward for m in base.modules() if isinstance(m.forward, kinds)]
        self._copies: list[object] | None = None
        self.layers = [layer for layer in cache.layers if isinstance(layer, PagedLayer)]
        rows, device = cache.rows, cache.ledger.total_counts.device
        self.buffers = Buffers(
            tokens=torch.zeros(rows, self.number, dtype=torch.long, device=device),
            positions=torch.zeros(rows, self.number, dtype=torch.long, device=device),
            levels=torch.ones(rows, len(cache.action_space.axes), dtype=torch.float32, device=device),
            first_key=torch.zeros(rows, dtype=torch.long, device=device),
            count=torch.ones(rows, dtype=torch.long, device=device),
        )
        self._places = torch.arange(self.number, device=device)
        ranks_codes = CRITERIA[rule.criterion].ranks_codes and "token_keep" not in self.dense_axes
        self.index_bits = rule.index_bits if ranks_codes else None
        """Bits of the codes that the layers keep for single tokens; `None` where they keep the page index."""
        for layer in self.layers:
            layer.reserve(capacity, self.index_bits)
        self.addresses = self._addresses()
        self.captured: tuple[torch.cuda.CUDAGraph, tuple[torch.Tensor, torch.Tensor]] | None = None

    @property
    def cache(self) -> SOLCache:
        """The cache that the graphs write to."""
        cache = self._cache()
        assert cache is not None, "the cache exists as long as its graphs are in use"
        return cache

    def __call__(
        self, tokens: torch.Tensor, levels: torch.Tensor | None = None, positions: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Process tokens; those of a step under its action.

        Args:
            tokens (`torch.LongTensor` of shape `(rows, number)`): Ids.
            levels (`torch.Tensor` of shape `(rows, axes)`, *optional*): Values of a step's actions, in axis units; of
                a KV refresh the bits in which it reads planes.
            positions (`torch.LongTensor` of shape `(rows, number)`, *optional*): Positions of the tokens; by default
                they follow from their place after the padding.

        Returns:
            Logits, `(rows, 1, vocab)` for a step and empty for a KV refresh, and the LM head's input for the last
            token, `(rows, hidden_size)`.
        """
        length = self.cache.get_seq_length()
        self._fill(tokens, levels, positions, length)
        for layer in self.layers:
            layer.update_index(self.buffers.first_key, self.cache.padding_range, self.index_bits)
        if self.buffers.tokens.device.type != "cuda":
            logits, hidden = self.run()
        else:
            with triton_support.on_device_of(self.buffers.tokens):
                logits, hidden = self._replay()
        if self._copies is None:
            self._copies = self._copies_in_use()
        for layer in self.layers:
            layer.note_appended(length + self.number, self.index_bits)
        self.cache.processed = length + self.number
        return logits, hidden

    def is_current(
        self,
        base: PreTrainedModel,
        rule: SelectionRule,
        dense_axes: Collection[str],
        refreshed: int = 0,
        bits_backend: str = "fake",
    ) -> bool:
        """Whether this can compute a forward of `base` under `rule`, with these axes dense.

        The cache must still have the same rows and storage, with room for the tokens. The copies of weights that it
        reads, planes included, must still be the same.
        """
        fits = self.cache.rows == len(self.buffers.tokens) and self.number == (refreshed or 1)
        fits = fits and self.cache.get_seq_length() + self.number <= self.capacity
        same = base is self.base and rule == self.rule and self.dense_axes == frozenset(dense_axes)
        same = same and bits_backend == self.bits_backend
        if not (fits and same) or self.addresses != self._addresses():
            return False
        in_use = self._copies_in_use()
        if self._copies is None:
            return True
        return len(in_use) == len(self._copies) and all(a is b for a, b in zip(in_use, self._copies, strict=True))

    def run(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The captured function: one forward of the base from the buffers into the cache's storage."""
        at, cache = self.buffers, self.cache
        plan, refresh, mask, rows = None, None, None, DeviceRows(at.first_key, at.count)
        levels = planned_levels(cache, at.levels, self.dense_axes)
        if not self.is_refresh:
            plan = StepPlan(cache, self.rule, levels, "fast", self.bits_backend, self.parts, rows)
        else:
            read = {axis: level for axis, level in levels.items() if axis == "bits" and self.bits_backend == "nested"}
            refresh = RefreshPlan(cache, "fast", True, rows_on_device=rows, levels=read, parts=self.parts)
            # transformers does not change a mask of this shape, and our attention ignores it: a refresh is causal.
            mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=at.tokens.device)
        try:
            for layer in self.layers:
                layer.append_at = DevicePlaces(at.first_key, at.count, self.index_bits)
            with active_forward(plan, refresh) as context:
                output = self.base(
                    input_ids=at.tokens,
                    attention_mask=mask,
                    position_ids=at.positions,
                    past_key_values=cache,
                    use_cache=True,
                    return_dict=True,
                )
            return output.logits[:, -1:], context.last_hidden_state()
        finally:
            for layer in self.layers:
                layer.append_at = None

    def _fill(
        self, tokens: torch.Tensor, levels: torch.Tensor | None, positions: torch.Tensor | None, length: int
    ) -> None:
        at, cache = self.buffers, self.cache
        at.tokens.copy_(tokens)
        if levels is not None:
            at.levels.copy_(levels)
        at.first_key.zero_() if cache.padding is None else at.first_key.copy_(cache.padding)
        at.count.fill_(length + self.number).sub_(at.first_key)
        if positions is not None:
            at.positions.copy_(positions.expand_as(at.positions))
            return
        offset = at.first_key if cache.position_offset is None else cache.position_offset
        at.positions.fill_(length).add_(self._places).sub_(offset[:, None]).clamp_(min=0)

    def _replay(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self.captured is None:
            self.captured = self._capture()
        graph, outputs = self.captured
        graph.replay()
        return outputs[0].clone(), outputs[1].clone()

    def _capture(self) -> tuple[torch.cuda.CUDAGraph, tuple[torch.Tensor, torch.Tensor]]:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                self.run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may use the GPU meanwhile
            outputs = self.run()
        return graph, outputs

    def _copies_in_use(self) -> list[object]:
        return [copy for part in self._copying for copy in part.copies]

    def _addresses(self) -> list[tuple[int, torch.Size]]:
        tensors = [x for layer in self.layers for x in (*layer.stores(), *layer.index_stores(self.index_bits))]
        return [(x.data_ptr(), x.shape) for x in tensors]


def check_capture(base: PreTrainedModel, cache: SOLCache, rule: SelectionRule) -> None:
    """Raise a ValueError if forwards of a base over a cache of this kind cannot be captured; the message says why."""
    config = base.config.get_text_config(decoder=True)
    if not triton_support.has_triton():
        raise ValueError("CUDA graphs need Triton: pip install 'sol_hf[cuda]'.")
    if cache.kv_dtype is not None:
        raise ValueError(
            "CUDA graphs read keys and values in the dtype of the base: leave out `kv_dtype`, or `cuda_graphs`."
        )
    others = sorted({type(layer).__name__ for layer in cache.layers if not isinstance(layer, PagedLayer)})
    if others:
        raise ValueError(f"CUDA graphs need full-attention layers only; this cache has {', '.join(others)}.")
    criterion = CRITERIA[rule.criterion]
    if not (criterion.has_kernels or criterion.ranks_codes):
        raise ValueError(
            f"CUDA graphs need a criterion with kernels, such as 'quest' or 'sketch', not {rule.criterion!r}."
        )
    if own_name(config._attn_implementation) != "sdpa":
        raise ValueError("CUDA graphs need a base with attn_implementation='sdpa'.")
    devices = {parameter.device for parameter in base.parameters()}
    if len(devices) > 1:
        raise ValueError(f"CUDA graphs need a base on one device; this one is on {sorted(map(str, devices))}.")
    changing = sorted({kind for module in base.modules() for kind in _rope_types(module) if _follows_length(kind)})
    if changing:
        raise ValueError(
            f"CUDA graphs cannot follow rotary embeddings that change with the length: rope_type={changing[0]!r}. "
            "Leave out `cuda_graphs`."
        )


def check_room(cache: SOLCache, capacity: int) -> None:
    """Raise a ValueError if a cache with `capacity` tokens of storage is full, or has no prompt yet."""
    if capacity <= cache.get_seq_length() or cache.get_seq_length() == 0:
        raise ValueError(
            f"`cuda_graphs` is {capacity}, but the cache holds {cache.get_seq_length()} tokens: it must be larger, "
            "and a step can only be captured after a prompt."
        )


def _rope_types(module: nn.Module) -> list[str]:
    """Kinds of rotary embedding that a module computes, one for each type of layer if they differ."""
    kinds = vars(module).get("rope_type", [])
    return list(kinds.values()) if isinstance(kinds, dict) else [kinds] if isinstance(kinds, str) else []


def _follows_length(rope_type: str) -> bool:
    return "dynamic" in rope_type or rope_type == "longrope"
