# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The session of a `generate` call, after the checks of its arguments and of its cache."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from ..cache.sol_cache import SOLCache
from ..configuration_sol import SOLConfig
from ..execution.base_device import compute_device
from .controls import DecodeControls
from .generate_checks import check_continuation, check_generate_arguments, refuse_continuous_batching
from .prompt_images import check_images, is_one_piece
from .session import DecodingSession
from .setup import check_kv_dtype_of, new_cache, own_cache
from .stored_values import replaced_values


def session_of_call(
    base: PreTrainedModel,
    config: SOLConfig,
    controls: DecodeControls | None,
    prompt: torch.Tensor | None,
    configs: tuple[GenerationConfig | None, GenerationConfig],
    arguments: dict[str, Any],
    vocab_size: int,
) -> DecodingSession | None:
    """The session of a call; `None` if it does not decode over a [`SOLCache`], or has no prompt.

    Args:
        base (`PreTrainedModel`): The frozen base.
        config ([`SOLConfig`]): Config of the policy.
        controls ([`DecodeControls`], *optional*): Settings of the decode steps.
        prompt (`torch.Tensor` of shape `(rows, length, ...)`, *optional*): Ids or embeddings.
        configs (`tuple` of two `GenerationConfig`): That of the call, if there is one, and the stored one.
        arguments (`dict[str, Any]`): Keyword arguments of `generate`. With `controls` and without a cache, an empty
            one is added.
        vocab_size (`int`): Number of ids that the base knows.

    Raises:
        ValueError: for arguments that do not fit each other, the base or the cache.
    """
    refuse_continuous_batching(arguments, configs[0])
    mask, replaced, steps = arguments.get("attention_mask"), {}, None
    if controls is not None:
        steps = steps_of(base, prompt, new_tokens(prompt, arguments, configs), mask) if controls.is_exact else None
        replaced = replaced_values(arguments, *configs, controls.origin)
        check_generate_arguments(prompt, arguments, compute_device(base), vocab_size, controls.origin)
        if arguments.get("past_key_values") is None:
            arguments["past_key_values"] = new_cache(base, config, controls.kv_dtype)
        elif controls.asks_kv_dtype:
            check_kv_dtype_of(arguments["past_key_values"], base, controls.kv_dtype)
    cache: Any = arguments.get("past_key_values")
    if isinstance(cache, SOLCache) and prompt is not None:
        own_cache(cache, base, config)
        check_continuation(prompt, mask, cache)
        check_images(base, prompt, arguments, cache)
    session = DecodingSession.after_prompt(base, cache, controls, prompt, mask, replaced, steps)
    if session is not None and controls is not None and prompt is not None and is_one_piece(base, prompt, arguments):
        session.is_recomputing = True
        session.steps = None if steps is None else steps - 1
    return session


def new_tokens(
    prompt: torch.Tensor | None, arguments: Mapping[str, Any], configs: Sequence[GenerationConfig | None]
) -> int:
    """The largest number of new tokens of a call, of which each has a decode step.

    Args:
        prompt (`torch.Tensor` of shape `(rows, length, ...)`, *optional*): Ids or embeddings.
        arguments (`Mapping[str, Any]`): Of the `generate` call.
        configs (`Sequence[GenerationConfig]`): That of the call, if there is one, and the stored one.

    Raises:
        ValueError: if it is given neither as `max_new_tokens` nor to the call as `max_length`.
    """
    given = [arguments.get("max_new_tokens"), *(config.max_new_tokens for config in configs if config is not None)]
    number = next((value for value in given if value is not None), None)
    if number is None and prompt is not None and arguments.get("max_length") is not None:
        number = arguments["max_length"] - prompt.shape[1]
    if number is None:
        raise ValueError("`exact` has to know how long the text may become: pass `max_new_tokens`.")
    return int(number)


def steps_of(base: PreTrainedModel, prompt: torch.Tensor | None, new: int, mask: torch.Tensor | None) -> int:
    """Steps of a call that count: one less than its new tokens if the base computes its text again on the way.

    Args:
        base (`PreTrainedModel`): The frozen base.
        prompt (`torch.Tensor` of shape `(rows, length, ...)`, *optional*): Ids or embeddings.
        new (`int`): New tokens.
        mask (`torch.Tensor` of shape `(rows, columns)`, *optional*): Of the whole text.
    """
    switch, text = getattr(base.config, "original_max_position_embeddings", None), prompt if mask is None else mask
    if switch is None or text is None:
        return new
    return new - (text.shape[1] <= switch < text.shape[1] + new)
