# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The base's part of a decode step as one CUDA graph, which serves every token, action and length.

A graph replays the same kernels on the same addresses. So everything that differs from step to step is read from
buffers on the device: the token, its position, the levels of the action, how many keys a row has. Keys and values
stay in the cache's own storage, which is given room for `capacity` tokens ahead; the new token is written to a slot
that the device knows. The controller, the ledger and a KV refresh run between the replays, as always.

Without a GPU nothing is captured and every step runs the same function on the same buffers: so the tests prove that
its result is the step's, that it launches the same operations on the same shapes at every step, and that none of them
waits for the device.
"""

import weakref
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from .attention import PREFIX, StepPlan, active_forward
from .cache import SOLCache
from .criteria import SelectionRule
from .elastic_mlp import ElasticMLP
from .kernels import triton_support
from .paged_layer import PagedLayer
from .triton_mlp_copy import TritonMLP


WARM_UPS = 3
"""Runs before a capture, so that libraries and kernels have allocated and compiled what they need."""


@dataclass(frozen=True)
class StepBuffers:
    """What a step reads: token `(rows, 1)`, position `(rows, 1)`, levels `(rows, 3)`, first and count `(rows,)`."""

    token: torch.Tensor
    position: torch.Tensor
    levels: torch.Tensor
    first: torch.Tensor
    count: torch.Tensor


class CapturedStep:
    """Decode steps of a base over one cache, replayed from a CUDA graph where there is a GPU.

    Args:
        base (`PreTrainedModel`): The base, instrumented.
        cache ([`SOLCache`]): With at least one token in it.
        rule ([`SelectionRule`]): How keys are selected; its criterion is `quest`.
        capacity (`int`): Tokens, padding included, that the cache is given room for.

    Raises:
        ValueError: if base or cache have a part that depends on the length in a way that a graph cannot follow.
    """

    def __init__(self, base: PreTrainedModel, cache: SOLCache, rule: SelectionRule, capacity: int):
        check_capture(base, cache, rule, capacity)
        self.base, self.rule, self.capacity = base, rule, capacity
        self._cache = weakref.ref(cache)  # which has this step
        self._mlps = [m.forward for m in base.modules() if isinstance(m.forward, ElasticMLP)]
        self._copies: list[TritonMLP | None] | None = None
        self.layers = [layer for layer in cache.layers if isinstance(layer, PagedLayer)]
        rows, device = cache.rows, cache.ledger.total_counts.device
        self.buffers = StepBuffers(
            token=torch.zeros(rows, 1, dtype=torch.long, device=device),
            position=torch.zeros(rows, 1, dtype=torch.long, device=device),
            levels=torch.ones(rows, 3, dtype=torch.float32, device=device),
            first=torch.zeros(rows, dtype=torch.long, device=device),
            count=torch.ones(rows, dtype=torch.long, device=device),
        )
        for layer in self.layers:
            layer.reserve(capacity)
        self.addresses = self._addresses()
        self.captured: tuple[torch.cuda.CUDAGraph, tuple[torch.Tensor, torch.Tensor]] | None = None

    @property
    def cache(self) -> SOLCache:
        """The cache that the step belongs to."""
        cache = self._cache()
        assert cache is not None, "a step is only reached through its cache"
        return cache

    def __call__(self, token: torch.Tensor, levels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Process a token per row under its action.

        Args:
            token (`torch.LongTensor` of shape `(rows, 1)`): Ids.
            levels (`torch.Tensor` of shape `(rows, 3)`): Values of the actions, in axis units.

        Returns:
            Logits `(rows, 1, vocab)` and what the LM head received, `(rows, hidden_size)`.
        """
        length = self.cache.get_seq_length()
        self._fill(token, levels, length)
        for layer in self.layers:
            layer.page_index(self.buffers.first, self.cache.padding_range)
        if self.buffers.token.device.type != "cuda":
            logits, hidden = self.run()
        else:
            with triton_support.on_device_of(self.buffers.token):
                logits, hidden = self._replay()
        if self._copies is None:
            self._copies = self._copies_in_use()
        for layer in self.layers:
            layer.note_appended(length + 1)
        return logits, hidden

    def is_current(self, base: PreTrainedModel, rule: SelectionRule) -> bool:
        """Whether a step of `base` under `rule` would be this one.

        The cache must have the rows and storage that it was made for, and room for a token, and the MLPs the copies
        of their weights that it reads.
        """
        fits = self.cache.rows == len(self.buffers.token) and self.cache.get_seq_length() < self.capacity
        if not fits or base is not self.base or rule != self.rule or self.addresses != self._addresses():
            return False
        in_use = self._copies_in_use()
        return self._copies is None or all(a is b for a, b in zip(in_use, self._copies, strict=True))

    def run(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What is captured: one step of the base from the buffers into the cache's storage."""
        at, cache = self.buffers, self.cache
        token_keep, mlp_keep, bits = at.levels.unbind(dim=-1)
        plan = StepPlan(cache, self.rule, token_keep, mlp_keep, bits, backend="fast")
        plan.memo["rows on device"] = at.first, at.count
        try:
            for layer in self.layers:
                layer.append_at = at.first, at.count
            with active_forward(plan) as context:
                output = self.base(
                    input_ids=at.token,
                    position_ids=at.position,
                    past_key_values=cache,
                    use_cache=True,
                    return_dict=True,
                )
            return output.logits[:, -1:], context.last_hidden_state()
        finally:
            for layer in self.layers:
                layer.append_at = None

    def _fill(self, token: torch.Tensor, levels: torch.Tensor, length: int) -> None:
        at, cache = self.buffers, self.cache
        at.token.copy_(token)
        at.levels.copy_(levels)
        at.first.zero_() if cache.padding is None else at.first.copy_(cache.padding)
        at.count.fill_(length + 1).sub_(at.first)
        offset = at.first if cache.position_offset is None else cache.position_offset
        at.position.fill_(length).sub_(offset[:, None]).clamp_(min=0)

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
        for layer in self.layers:  # the warm-ups put their token into the bounds of its page
            layer.index_again(self.buffers.first, self.cache.padding_range)
        return graph, outputs

    def _copies_in_use(self) -> list[TritonMLP | None]:
        return [mlp.made_copy(TritonMLP) for mlp in self._mlps]

    def _addresses(self) -> list[tuple[int, torch.Size]]:
        tensors = [x for layer in self.layers for x in (*layer.stores(), *layer.page_store()[:2])]
        return [(x.data_ptr(), x.shape) for x in tensors]

    def __deepcopy__(self, memo: dict) -> None:
        """A copy of the cache captures its own."""
        return None


def check_capture(base: PreTrainedModel, cache: SOLCache, rule: SelectionRule, capacity: int) -> None:
    """Raise a ValueError if the steps of a base over a cache cannot be captured; the message says why."""
    config = base.config.get_text_config(decoder=True)
    others = sorted({type(layer).__name__ for layer in cache.layers if not isinstance(layer, PagedLayer)})
    if others:
        raise ValueError(f"A captured step needs full-attention layers only; this cache has {', '.join(others)}.")
    if rule.criterion != "quest":
        raise ValueError(f"A captured step needs the criterion 'quest', not {rule.criterion!r}.")
    if config._attn_implementation != PREFIX + "sdpa":
        raise ValueError("A captured step needs a base with attn_implementation='sdpa', within a generation.")
    changing = sorted({kind for module in base.modules() for kind in _rope_types(module) if _follows_length(kind)})
    if changing:
        raise ValueError(
            f"A captured step cannot follow rotary embeddings that change with the length: rope_type={changing[0]!r}. "
            "Leave `capture_up_to` at None."
        )
    if capacity <= cache.get_seq_length() or cache.get_seq_length() == 0:
        raise ValueError(
            f"`capture_up_to` is {capacity}, but the cache holds {cache.get_seq_length()} tokens: it must be larger, "
            "and a step can only be captured after a prompt."
        )
    if not triton_support.has_triton():
        raise ValueError("A captured step needs Triton: pip install 'sol_hf[cuda]'.")


def _rope_types(module: nn.Module) -> list[str]:
    """Kinds of rotary embedding that a module computes, one for each type of layer if they differ."""
    kinds = vars(module).get("rope_type", [])
    return list(kinds.values()) if isinstance(kinds, dict) else [kinds] if isinstance(kinds, str) else []


def _follows_length(rope_type: str) -> bool:
    return "dynamic" in rope_type or rope_type == "longrope"
