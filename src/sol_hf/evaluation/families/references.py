# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Decode steps of a base without our code: its own attention under masks, its own MLPs under hooks.

Budgeted steps have to give the same logits. The keys of a step are those of the criterion `recency`, which does not
look at the keys, so that they are known beforehand.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ...execution.attention.interface import eager_attention_of
from ...execution.mlp.discovery import find_sites
from ...execution.mlp.sites import ExpertsMLP, MLPSite, TwoProjections, WholeMLP


Levels = dict[str, float]
"""Levels of a step by axis, in axis units; changed from step to step."""


def stepwise(
    base: PreTrainedModel, row: torch.Tensor, context: int, levels: Levels, steps: list[Levels]
) -> torch.Tensor:
    """Logits `(1, steps, vocabulary)` of a base after a context: a prefill, then one token at a time.

    Args:
        base (`PreTrainedModel`): The base, in the context managers below.
        row (`torch.Tensor` of shape `(1, length)`): The text.
        context (`int`): Tokens of the prefill.
        levels (`dict`): What the context managers read; set to those of each step.
        steps (`list[dict]`): Levels of every step; none for dense steps.
    """
    cache, logits = DynamicCache(config=base.config.get_text_config(decoder=True)), []
    levels.clear()
    with torch.no_grad():
        base(row[:, :context], past_key_values=cache, use_cache=True)
        for step, place in enumerate(range(context, row.shape[1])):
            levels.update(steps[step] if steps else {})
            logits.append(base(row[:, place : place + 1], past_key_values=cache, use_cache=True).logits[:, -1:])
    levels.clear()
    return torch.cat(logits, dim=1)


def recent_keys(keys: int, token_keep: float, sink: int, window: int) -> torch.Tensor:
    """A mask `(keys,)` of those that `recency` reads."""
    always = sink + window + 1
    kept = min(keys, always + math.ceil(token_keep * max(keys - always, 0) - 1e-6))
    places = torch.arange(keys)
    return (places < sink) | (places >= keys - kept + sink)


@contextmanager
def masked_attention(levels: Levels, layers: frozenset[int], sink: int, window: int) -> Iterator[None]:
    """Within the block, the base's own attention functions hide keys, in some layers."""

    def masked(original: Callable | None) -> Callable:
        def attention(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any) -> Any:
            mask = attention_mask
            own = original or eager_attention_of(type(module).forward)
            if levels.get("token_keep", 1.0) < 1.0 and getattr(module, "layer_idx", None) in layers:
                selected = recent_keys(key.shape[2], levels["token_keep"], sink, window)
                hidden = torch.zeros(1, 1, 1, key.shape[2], dtype=query.dtype)
                hidden = hidden.masked_fill(~selected, torch.finfo(query.dtype).min)
                if isinstance(mask, torch.Tensor) and mask.dtype == torch.bool:
                    mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, torch.finfo(query.dtype).min)
                mask = hidden if mask is None else torch.minimum(mask, hidden)
            return own(module, query, key, value, mask, **kwargs)

        return attention

    own = ALL_ATTENTION_FUNCTIONS["sdpa"]
    with ExitStack() as undo:
        for name, original in (("sdpa", own), ("eager", None)):
            ALL_ATTENTION_FUNCTIONS[name] = masked(original)
            undo.callback(ALL_ATTENTION_FUNCTIONS.__delitem__, name)
        yield


@contextmanager
def reduced_mlps(base: PreTrainedModel, levels: Levels) -> Iterator[None]:
    """Within the block, hooks on the base's MLPs drop channels and neurons and round outputs."""
    with ExitStack() as undo:
        for site in find_sites(base):
            for remove in _hooks_of(site, levels):
                undo.callback(remove)
        yield


def _hooks_of(site: MLPSite, levels: Levels) -> Iterator[Callable[[], Any]]:
    first, last, output = site.modules[0], site.last, site.modules[-1]
    yield first.register_forward_pre_hook(_keep_inputs("mlp_keep", levels), with_kwargs=True).remove
    if isinstance(site, WholeMLP | TwoProjections) and last is not None:
        yield last.register_forward_pre_hook(_keep_inputs("neuron_keep", levels), with_kwargs=True).remove
    if isinstance(site, ExpertsMLP):
        yield from _keep_expert_neurons(site.module, levels)
    yield output.register_forward_hook(lambda module, args, result: rounded(result, levels.get("bits", 16))).remove


def _keep_inputs(axis: str, levels: Levels) -> Callable:
    def hook(module: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> tuple[tuple, dict]:
        if not args:
            name = next(iter(kwargs))
            return args, {**kwargs, name: largest_kept(kwargs[name], levels.get(axis, 1.0))}
        return (largest_kept(args[0], levels.get(axis, 1.0)), *args[1:]), dict(kwargs)

    return hook


def _keep_expert_neurons(module: Any, levels: Levels) -> Iterator[Callable[[], Any]]:
    """transformers' batched implementation asks the module for what is between its two products."""
    name = "_apply_gate" if getattr(module, "has_gate", True) else "act_fn"
    if not hasattr(module, "_apply_gate"):
        return
    own, config = getattr(module, name), module.config
    implementation = config._experts_implementation
    config._experts_implementation = "batched_mm"
    if name == "act_fn":
        del module._modules[name]
    vars(module)[name] = lambda x: largest_kept(own(x), levels.get("neuron_keep", 1.0))

    def undo() -> None:
        del vars(module)[name]
        if name == "act_fn":
            module._modules[name] = own
        config._experts_implementation = implementation

    yield undo


def largest_kept(x: torch.Tensor, share: float) -> torch.Tensor:
    """`x` `(..., channels)` with all but a share of the largest channels set to zero."""
    if share >= 1.0:
        return x
    count = max(1, math.ceil(share * x.shape[-1] - 1e-6))
    chosen = x.abs().sort(dim=-1, descending=True, stable=True).indices[..., :count]
    return torch.zeros_like(x).scatter(-1, chosen, x.gather(-1, chosen))


def rounded(x: torch.Tensor, bits: float) -> torch.Tensor:
    """`x` `(..., channels)` rounded to a number of bits, symmetrically, with one scale per token."""
    if bits >= 16:
        return x
    limit = 2 ** (bits - 1) - 1
    scale = x.float().abs().amax(dim=-1, keepdim=True).clamp(min=1e-8) / limit
    return ((x.float() / scale).round().clamp(-limit, limit) * scale).to(x.dtype)
