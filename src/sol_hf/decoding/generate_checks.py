# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Checks of the arguments of `generate` under a budget, before any compute."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch
from transformers import GenerationConfig, GenerationMixin
from transformers.generation import GenerationMode

from ..budget.axes import AXES
from ..cache.sol_cache import SOLCache
from .session import DecodingSession


BEAM_MODES = (GenerationMode.BEAM_SEARCH, GenerationMode.BEAM_SAMPLE)


STEPWISE_MODES = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE, *BEAM_MODES)


def find_prompt(inputs: torch.Tensor | None, arguments: Mapping[str, Any]) -> torch.Tensor | None:
    """The prompt of a `generate` call: ids `(rows, length)`, or embeddings `(rows, length, embedding_size)`."""
    candidates = (inputs, arguments.get("input_ids"), arguments.get("inputs_embeds"))
    return next((prompt for prompt in candidates if prompt is not None), None)


def contexts_of_prompt(prompt: torch.Tensor | None, mask: torch.Tensor | None) -> torch.Tensor:
    """Tokens before the first decode step of every row, `(rows,)`, padding not counted; the last of a prompt is one.

    Args:
        prompt (`torch.Tensor`, *optional*): From [`find_prompt`].
        mask (`torch.Tensor` of shape `(rows, columns)`, *optional*): Covers the whole text, also what a cache holds.
    """
    if mask is not None and mask.dim() == 2:
        return mask.long().sum(dim=1) - 1
    rows, length = (1, 1) if prompt is None or prompt.dim() < 2 else prompt.shape[:2]  # others are refused later
    return torch.full((rows,), length - 1)


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


def add_mask_of_assistant(
    prompt: torch.Tensor | None, arguments: dict[str, Any], generation_config: GenerationConfig | None
) -> None:
    """Add the attention mask that transformers' assisted generation leaves out when it calls its assistant.

    It has one row without padding. If the text has the pad token, as chats often do, a mask that transformers makes
    would hide it.
    """
    is_assistant = getattr(generation_config, "is_assistant", False)
    if is_assistant and prompt is not None and prompt.dim() == 2 and arguments.get("attention_mask") is None:
        arguments["attention_mask"] = torch.ones_like(prompt)


def leave_out_budget(config: GenerationConfig) -> None:
    """Make calls with a generation config dense, in place: those of a generation that runs only some of the layers."""
    if any(getattr(config, name, None) is not None for name in ("compute", *AXES)):
        for axis in AXES:
            setattr(config, axis, None)
        config.compute = 1.0


def check_generate_arguments(
    prompt: torch.Tensor | None,
    arguments: Mapping[str, Any],
    device: torch.device,
    vocabulary: int,
    origin: str = "",
) -> None:
    """Raise a ValueError for arguments that cannot be used under a budget.

    Args:
        prompt (`torch.Tensor`, *optional*): From [`find_prompt`].
        arguments (`Mapping[str, Any]`): Of the `generate` call.
        device (`torch.device`): Of the base.
        vocabulary (`int`): Rows of the base's input embeddings.
        origin (`str`): [`DecodeControls.origin`].
    """
    if prompt is None or prompt.shape[1:2].numel() == 0:
        raise ValueError("The prompt is empty: at least one token is needed.")
    check_tokens(prompt, vocabulary)
    embeds = arguments.get("inputs_embeds")
    if embeds is not None and prompt is not embeds and prompt.shape[1] != embeds.shape[1]:
        raise ValueError(
            f"`input_ids` has {prompt.shape[1]} tokens, `inputs_embeds` {embeds.shape[1]}: both must cover the whole "
            "prompt. Or pass `inputs_embeds` only; the output then has the new tokens only."
        )
    if prompt.device.type not in ("cpu", device.type):
        raise ValueError(f"The prompt is on {prompt.device}, the model on {device}.")
    if arguments.get("assistant_model") is not None:
        refuse(GenerationMode.ASSISTED_GENERATION, origin)
    cache = arguments.get("past_key_values")
    if cache is not None and not isinstance(cache, SOLCache):
        raise ValueError(
            f"A budget needs a SOLCache, got {type(cache).__name__}: pass `model.new_cache()` or the "
            f"`past_key_values` of an earlier output.{origin}"
        )


def check_tokens(tokens: torch.Tensor, vocabulary: int) -> None:
    """Raise a ValueError if `tokens` are neither ids `(rows, length)` nor embeddings `(rows, length, size)`.

    Ids on a CPU are also compared with the size of the vocabulary.
    """
    shape = tuple(tokens.shape)
    if tokens.dim() != (3 if tokens.is_floating_point() else 2):
        raise ValueError(
            f"A prompt has whole-number ids of shape (rows, length), or embeddings of shape (rows, length, size), got "
            f"{tokens.dtype} of shape {shape}."
        )
    if len(tokens) == 0:
        raise ValueError(f"The prompt has no rows: its shape is {shape}.")
    if tokens.dim() == 2 and tokens.device.type == "cpu" and tokens.numel():
        least, most = int(tokens.min()), int(tokens.max())
        if least < 0 or most >= vocabulary:
            wrong = least if least < 0 else most
            raise ValueError(f"The prompt has the id {wrong}, but the base's ids are 0..{vocabulary - 1}.")


def check_continuation(prompt: torch.Tensor, mask: torch.Tensor | None, cache: SOLCache) -> None:
    """Raise a ValueError if a prompt does not continue the text in a cache.

    Args:
        prompt (`torch.Tensor`): The whole text so far and new tokens, or new tokens only.
        mask (`torch.Tensor` of shape `(rows, columns)`, *optional*): Covers the whole text; needed if the prompt has
            new tokens only.
        cache ([`SOLCache`]): From an earlier call.
    """
    length, past = prompt.shape[1], cache.get_seq_length()
    if mask is not None and (mask.dim() != 2 or mask.shape[1] not in (length, past + length)):
        raise ValueError(
            f"`attention_mask` must have shape (rows, columns) and cover the prompt ({length} tokens) and what the "
            f"cache holds ({past}), but has shape {tuple(mask.shape)}."
        )
    is_whole = prompt.is_floating_point() or mask is None or mask.shape[1] == length
    if not is_whole or past == 0:
        return
    if length <= past:
        raise ValueError(
            f"The cache holds {past} tokens, the prompt has {length}: pass the whole text, those tokens included, or "
            f"the new tokens only with an `attention_mask` of {past + length} columns. `cache.crop` drops tokens."
        )
    steps = [] if prompt.is_floating_point() or cache.rows % len(prompt) else cache.episode.steps
    if steps and not any(step.token.is_floating_point() for step in steps):
        known = torch.cat([step.token for step in steps], dim=1)
        found = prompt[:, past - len(steps) : past].to(known)
        found = found.repeat_interleave(cache.rows // len(prompt), dim=0)  # as the loop repeats rows for beams
        if not torch.equal(known, found):
            if len(prompt) != cache.rows:
                raise ValueError(
                    f"The cache holds {cache.rows} rows, but the input has {len(prompt)} of another text."
                )
            row = int((known != found).any(dim=1).nonzero()[0, 0])
            raise ValueError(
                f"The prompt differs from the text in the cache within its last {len(steps)} tokens, in row {row}: "
                f"{found[row].tolist()} in place of {known[row].tolist()}. Pass the `sequences` of the earlier output "
                "and new tokens after them, or a new cache. After beam search the rows of a cache are beams."
            )


def named_arguments(further: Sequence[Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Positional arguments of transformers' generate after the second, by their names.

    Raises:
        TypeError: if there are too many, or an argument is given twice.
    """
    names = [name for name in inspect.signature(GenerationMixin.generate).parameters if name != "kwargs"][3:]
    if len(further) > len(names):
        raise TypeError(f"`generate` takes at most {len(names) + 2} positional arguments, got {len(further) + 2}.")
    named = dict(zip(names, further, strict=False))
    twice = sorted(named.keys() & arguments.keys())
    if twice:
        raise TypeError(f"`generate` got {', '.join(twice)} twice, by position and by name.")
    return named


def refuse_continuous_batching(arguments: Mapping[str, Any], generation_config: GenerationConfig | None) -> None:
    """Refuse the paged cache of continuous batching, with or without a budget."""
    stored = getattr(generation_config, "cache_implementation", None)
    if "paged" in (arguments.get("cache_implementation"), stored):
        refuse_batching()


def refuse_batching() -> NoReturn:
    """Raise the ValueError for continuous batching."""
    raise ValueError(
        "Continuous batching (`generate_batch`, `cache_implementation='paged'`, transformers' server with it) refuses "
        "foreign models and attention: call the base's own `model.base.generate_batch`, which runs without a budget, "
        "or `model.generate`."
    )


def suit_to_session(config: GenerationConfig, model_arguments: dict[str, Any]) -> None:
    """Give a prepared generation config what the running call uses instead of stored values, and check its mode.

    Args:
        config (`GenerationConfig`): As the loop is to use it; changed in place.
        model_arguments (`dict[str, Any]`): The arguments of the forwards; changed in place.
    """
    cache = model_arguments.get("past_key_values")
    session = DecodingSession.current()
    if session is not None and session.cache is cache:
        for name, value in session.replaced.items():
            setattr(config, name, value)
            model_arguments.pop(name, None)
    refuse_mode(cache, config.get_generation_mode())


def refuse_mode(cache: Any, mode: GenerationMode) -> None:
    """Raise a ValueError if a call over a cache, as it runs under its budget, cannot run in a generation mode.

    The running session may be that of another call: a controller or a streamer can call `generate`, too.
    """
    session = DecodingSession.current()
    if session is None or session.cache is not cache or session.controls is None:
        return
    if session.look_ahead is not None and mode in BEAM_MODES:
        raise ValueError(
            "`lossless` cannot be used with beams, which move keys and values to another place at every step: leave "
            "it out, or pass `num_beams=1`."
        )
    if session.controls.cuda_graphs and mode in BEAM_MODES:
        raise ValueError(
            "`cuda_graphs` cannot be used with beams, which move keys and values to another place at every step: "
            "leave it out."
        )
    if mode not in STEPWISE_MODES:
        refuse(mode, session.controls.origin)


def refuse(mode: GenerationMode, origin: str = "") -> NoReturn:
    """Raise the ValueError for a generation mode that cannot run under a budget, with [`DecodeControls.origin`]."""
    raise ValueError(
        f"Generation mode `{mode.value}` cannot run under a budget, which chooses the compute of every token on its "
        "own: only greedy search, sampling and beam search can. Leave out the options of that mode, or call "
        f"`model.base.generate`.{origin}"
    )
