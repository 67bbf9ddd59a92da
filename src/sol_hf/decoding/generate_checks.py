# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Checks of the arguments of `generate` under a budget, before any compute."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation import GenerationMode

from ..cache.sol_cache import SOLCache
from .session import DecodingSession


BEAM_MODES = (GenerationMode.BEAM_SEARCH, GenerationMode.BEAM_SAMPLE)


STEPWISE_MODES = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE, *BEAM_MODES)


def find_prompt(inputs: torch.Tensor | None, arguments: Mapping[str, Any]) -> torch.Tensor | None:
    """The prompt of a `generate` call: ids `(rows, length)`, or embeddings `(rows, length, embedding_size)`."""
    candidates = (inputs, arguments.get("input_ids"), arguments.get("inputs_embeds"))
    return next((prompt for prompt in candidates if prompt is not None), None)


def begin_of_text(
    arguments: Mapping[str, Any],
    generation_config: GenerationConfig | None,
    stored: GenerationConfig,
    device: torch.device,
) -> torch.Tensor:
    """The prompt of a call without one: the token that begins a text, as in transformers, ids `(1, 1)`.

    Raises:
        ValueError: if neither the call nor a generation config has a `bos_token_id`.
    """
    sources = [arguments, *(vars(config) for config in (generation_config, stored) if config is not None)]
    token = next((source["bos_token_id"] for source in sources if source.get("bos_token_id") is not None), None)
    if token is None:
        raise ValueError("There is no prompt, and no `bos_token_id` to begin a text with: pass `input_ids`.")
    return torch.full((1, 1), int(token), dtype=torch.long, device=device)


def check_generate_arguments(
    prompt: torch.Tensor | None,
    arguments: Mapping[str, Any],
    generation_config: GenerationConfig | None,
    stored: GenerationConfig,
    device: torch.device,
) -> None:
    """Raise a ValueError for arguments that cannot be used under a budget.

    Args:
        prompt (`torch.Tensor`, *optional*): From [`find_prompt`].
        arguments (`Mapping[str, Any]`): Of the `generate` call.
        generation_config (`GenerationConfig`, *optional*): Of the `generate` call.
        stored (`GenerationConfig`): The model's own.
        device (`torch.device`): Of the base.
    """
    if prompt is None or prompt.shape[1] == 0:
        raise ValueError("The prompt is empty: at least one token is needed.")
    if prompt.device.type not in ("cpu", device.type):
        raise ValueError(f"The prompt is on {prompt.device}, the model on {device}.")
    cache = arguments.get("past_key_values")
    if cache is not None and not isinstance(cache, SOLCache):
        raise ValueError(
            f"A budget needs a SOLCache, got {type(cache).__name__}: pass `model.new_cache()` or the "
            "`past_key_values` of an earlier output."
        )
    mask, past = arguments.get("attention_mask"), 0 if cache is None else cache.get_seq_length()
    if mask is not None and mask.shape[1] not in (prompt.shape[1], past + prompt.shape[1]):
        raise ValueError(
            f"`attention_mask` must cover the prompt ({prompt.shape[1]} tokens) and what the cache holds ({past}), "
            f"but has {mask.shape[1]} columns."
        )
    sources = [arguments, *(vars(config) for config in (generation_config, stored) if config is not None)]
    in_force = {
        name: next((source[name] for source in sources if source.get(name) is not None), None)
        for name in ("use_cache", "cache_implementation")
    }
    guidance = arguments.get("guidance_scale", getattr(generation_config, "guidance_scale", None))
    if guidance not in (None, 1, 1.0):
        raise ValueError(
            f"`guidance_scale={guidance}` runs the base a second time for every token, densely: leave it out, or the "
            "budget."
        )
    if in_force["use_cache"] is False:
        raise ValueError("A budget needs the cache: remove `use_cache=False`.")
    if in_force["cache_implementation"] not in (None, "dynamic"):
        raise ValueError(
            f"A budget needs its own cache, so `cache_implementation={in_force['cache_implementation']!r}` (static, "
            "quantized, offloaded, or the paged cache of continuous batching) cannot be used with it."
        )


def refuse_continuous_batching(arguments: Mapping[str, Any], generation_config: GenerationConfig | None) -> None:
    """Raise a ValueError for the paged cache of continuous batching, with or without a budget."""
    stored = getattr(generation_config, "cache_implementation", None)
    if "paged" in (arguments.get("cache_implementation"), stored):
        raise ValueError(
            "Continuous batching (`cache_implementation='paged'`) refuses foreign models and attention: call the "
            "base's own `model.base.generate_batch`, which runs without a budget."
        )


def refuse_mode(cache: Any, mode: GenerationMode) -> None:
    """Raise a ValueError if a call over a cache, as it runs under its budget, cannot run in a generation mode.

    The running session may be that of another call: a controller or a streamer can call `generate`, too.
    """
    session = DecodingSession.current()
    if session is None or session.cache is not cache or session.controls is None:
        return
    if session.controls.cuda_graphs and mode in BEAM_MODES:
        raise ValueError(
            "`cuda_graphs` cannot be used with beams, which move keys and values to another place at every step: "
            "leave it out."
        )
    if mode not in STEPWISE_MODES:
        raise ValueError(
            f"Generation mode `{mode.value}` cannot run under a budget: it verifies several tokens in one forward, "
            "but a budget chooses the compute of every token on its own."
        )
