# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The fields of a request: those of OpenAI's API that are carried out here, and the budget of this one request.

Everything is checked before any compute. A field that would change the answer and is not carried out is refused,
unless its value says what happens anyway.
"""

import difflib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from transformers import GenerationConfig

from ..budget.axes import AXES
from ..configuration_sol import SOLConfig
from ..controllers.base import Controller
from ..decoding.options import resolve_options
from .errors import RequestRefusedError
from .row import RowSettings
from .sampling import Sampling


OPTIONS = ("compute", "compute_unit", "budget_mode", "budget_horizon", "lossless", "measure_agreement")
"""Options of `generate` that a request may have, beside a target for every registered axis."""
SHARED = ("model", "stream", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "frequency_penalty")
CHAT = (*SHARED, "messages", "max_tokens", "max_completion_tokens", "logit_bias", "tools", "chat_template_kwargs")
COMPLETION = (*SHARED, "prompt", "max_tokens", "suffix")
"""Fields that are carried out."""
WITHOUT_EFFECT: dict[str, tuple] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "logprobs": (False, 0),
    "top_logprobs": (0,),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "tool_choice": ("auto",),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": (),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "reasoning_effort": (),
    "generation_config": (),
}
"""Fields of the API that are not carried out, with the values that ask for nothing."""
IGNORED = ("user", "metadata", "store", "service_tier", "stream_options", "safety_identifier", "prompt_cache_key")
"""Fields of the API that change no answer. Usage is always part of a stream, whatever `stream_options` says."""
MOST_STOPS = 16


def budget_fields() -> tuple[str, ...]:
    """The fields that are ours."""
    return (*AXES, *OPTIONS)


def check_names(body: Mapping[str, Any], carried_out: Collection[str]) -> None:
    """Raise a [`RequestRefusedError`] for fields that are not known, or not carried out.

    Args:
        body (`Mapping[str, Any]`): The request.
        carried_out (`Collection[str]`): Fields of OpenAI's API that the endpoint carries out.
    """
    for name, value in body.items():
        if name in carried_out or name in budget_fields() or name in IGNORED or value is None:
            continue
        if name == "generation_config":
            raise RequestRefusedError(
                "`generation_config` is not read here: give its settings as fields of the request.", name
            )
        if name in WITHOUT_EFFECT:
            neutral = WITHOUT_EFFECT[name]
            if not any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in neutral):
                raise RequestRefusedError(f"`{name}` is not supported: leave it out.", name)
            continue
        near = difflib.get_close_matches(name, [*budget_fields(), *carried_out], n=1, cutoff=0.7)
        hint = f": did you mean `{near[0]}`?" if near else f". Those for the budget are {', '.join(budget_fields())}."
        raise RequestRefusedError(f"Unknown field `{name}`{hint}", name)


def read_settings(
    body: Mapping[str, Any], config: SOLConfig, stored: GenerationConfig, controller: Controller | None = None
) -> RowSettings:
    """What a request asks for.

    Args:
        body (`Mapping[str, Any]`): The request, after [`check_names`].
        config ([`SOLConfig`]): Of the model.
        stored (`GenerationConfig`): The model's own, which holds where a request says nothing.
        controller ([`Controller`], *optional*): What spends a budget; the policy by default.

    Raises:
        RequestRefusedError: for a value that is not allowed, or a budget that no generation could keep.
    """
    given = {name: body[name] for name in budget_fields() if body.get(name) is not None}
    for name, value in given.items():
        _check_kind(name, value)
    try:
        options = resolve_options(given, None, stored, config)
        if options.budget is not None:
            options.budget.check(options.spending(config.action_space), rows=1)
            options = replace(options, controller=controller)
    except (ValueError, TypeError, OverflowError) as error:
        raise RequestRefusedError(str(error), next(iter(given), None)) from error
    name = "max_tokens" if body.get("max_completion_tokens") is None else "max_completion_tokens"
    return RowSettings(options, _sampling(body, stored), _stops(body.get("stop")), _whole(body, name, least=1))


def _check_kind(name: str, value: Any) -> None:
    """Raise a [`RequestRefusedError`] if a budget field has a value of another kind: one number, not one per row."""
    if name == "compute" and isinstance(value, str):
        return  # a quality, which `resolve_options` reads
    if name in AXES or name == "compute":
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise RequestRefusedError(f"`{name}` must be a number, got {value!r}.", name)
    elif name == "measure_agreement":
        if not isinstance(value, bool):
            raise RequestRefusedError(f"`{name}` must be true or false, got {value!r}.", name)
    elif name == "lossless":
        if not isinstance(value, int):
            raise RequestRefusedError(f"`{name}` must be true, false, or the tokens of a draft, got {value!r}.", name)
    elif not isinstance(value, str):
        raise RequestRefusedError(f"`{name}` must be a text, got {value!r}.", name)


def _sampling(body: Mapping[str, Any], stored: GenerationConfig) -> Sampling:
    settings = Sampling.of_model(stored)
    temperature = _number(body, "temperature", 0, 2)
    if temperature is not None:
        settings |= dict(do_sample=temperature > 0, temperature=temperature or None)
    for name, least, most in (("top_p", 0, 1), ("min_p", 0, 1)):
        if (value := _number(body, name, least, most)) is not None:
            settings[name] = value
    if settings["top_p"] == 0:
        settings |= dict(do_sample=False, top_p=None)
    if (top_k := _whole(body, "top_k", least=0)) is not None:
        settings["top_k"] = top_k
    if (penalty := _number(body, "frequency_penalty", -2, 2)) is not None:
        if penalty <= -1:
            raise RequestRefusedError(
                f"`frequency_penalty` must be above -1, got {penalty}: here it is transformers' repetition penalty, "
                "minus 1.",
                "frequency_penalty",
            )
        settings["repetition_penalty"] = 1 + penalty
    seed = _whole(body, "seed", least=-(2**63))
    if seed is not None and seed >= 2**64:
        raise RequestRefusedError("`seed` must be below 2 ** 64.", "seed")
    return Sampling(**settings, seed=seed, logit_bias=_logit_bias(body.get("logit_bias")))


def _logit_bias(given: Any) -> tuple[tuple[int, float], ...]:
    if given is None:
        return ()
    try:
        pairs = tuple((int(token), float(bias)) for token, bias in given.items())
    except (AttributeError, TypeError, ValueError) as error:
        raise RequestRefusedError("`logit_bias` must map ids of tokens to numbers.", "logit_bias") from error
    if any(token < 0 or not abs(bias) <= 100 for token, bias in pairs) or len(pairs) > 1024:
        raise RequestRefusedError(
            "`logit_bias` must have at most 1024 ids of tokens, with numbers from -100 to 100.", "logit_bias"
        )
    return pairs


def _stops(given: Any) -> tuple[str, ...]:
    stops = [given] if isinstance(given, str) else [] if given is None else given
    if not isinstance(stops, Sequence) or not all(isinstance(stop, str) and stop for stop in stops):
        raise RequestRefusedError("`stop` must be a text, or a list of texts, none of them empty.", "stop")
    if len(stops) > MOST_STOPS or sum(map(len, stops)) > 4096:
        raise RequestRefusedError(f"`stop` can have at most {MOST_STOPS} texts of 4096 characters in all.", "stop")
    return tuple(stops)


def _number(body: Mapping[str, Any], name: str, least: float, most: float) -> float | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise RequestRefusedError(f"`{name}` must be a number from {least} to {most}, got {value!r}.", name)
    return float(value)


def _whole(body: Mapping[str, Any], name: str, least: int) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise RequestRefusedError(f"`{name}` must be a whole number, at least {least}, got {value!r}.", name)
    return value
