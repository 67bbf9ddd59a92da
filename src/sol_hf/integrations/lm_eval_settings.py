# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""All that the answers of `--model sol` depend on, for the results and for response caches.

Everything is found by walking: the fields of [`DecodeOptions`], the config of the policy, the arguments of `HFLM`. An
option that is added there is part of the settings at once.
"""

import dataclasses
import inspect
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedTokenizerBase

from ..controllers.names import DENSE
from ..decoding.options import DecodeOptions
from ..modeling_sol import SOLForCausalLM
from ..stored.digests import config_digest, config_values, plain, value_digest, weights_digest


NO_ANSWERS = ("self", "pretrained", "tokenizer", "device", "batch_size", "max_batch_size", "kwargs")
"""Parameters of `HFLM` that change no answer, or that are hashed for themselves."""
FOR_PEOPLE = ("policy", "base", "compute_unit", "dial")
"""Settings that say where files and a budget are from; the files are hashed, and the budget is a setting."""
UNKNOWN = "offloaded, not read"
COUNTED = ("levels", "bytes")
"""What response caches keep of every request beside its response."""


def option_settings(options: DecodeOptions, axes: tuple[str, ...]) -> dict[str, Any]:
    """Every resolved option of a call, the budget as one target per axis.

    Args:
        options ([`DecodeOptions`]): From [`resolve_options`].
        axes (`tuple[str, ...]`): Axes of the policy's action space.
    """
    settings = {field.name: plain(getattr(options, field.name)) for field in dataclasses.fields(options)}
    del settings["controller"]  # it has a name of its own
    if options.budget is not None:
        settings["budget"] = {axis: plain(getattr(options.budget, axis)) for axis in axes}
    return settings


def policy_settings(model: SOLForCausalLM) -> dict[str, Any]:
    """Config, weights and type of the policy.

    The calibration table is no part of it: it only gives the budget of a call with `compute`, and that budget is a
    setting.
    """
    policy = {"policy_config": config_values(model.config), "policy_weights": weights_digest(model.policy)}
    return policy | {"policy_dtype": plain(model.policy.dtype)}


def harness_settings(lm: HFLM, given: Mapping[str, Any]) -> dict[str, Any]:
    """Base, tokenizer, and the arguments of `HFLM`.

    Args:
        lm (`HFLM`): With a loaded base.
        given (`Mapping[str, Any]`): The arguments that it was made with; the others have their defaults.
    """
    defaults = {name: item.default for name, item in inspect.signature(HFLM.__init__).parameters.items()}
    arguments = {name: value for name, value in (defaults | dict(given)).items() if name not in NO_ANSWERS}
    base = lm.sol.base
    try:
        weights = weights_digest(base)
    except ValueError:
        weights = UNKNOWN
    return {
        "base_weights": weights,
        "base_config": config_digest(base.config, leave_out=("dtype", "torch_dtype")),
        "generation_config": config_values(lm.sol.generation_config),
        "dtype": plain(base.dtype),
        "device": lm.device.type,
        "attention": base.config._attn_implementation,
        "tokenizer": tokenizer_digest(lm.tokenizer),
        "max_length": lm.max_length,
        "harness": plain(arguments),
        "counted": COUNTED,
        "versions": package_versions(),
    }


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of the vocabulary, merges and settings of a tokenizer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = tokenizer.get_vocab() if backend is None else backend.to_str()
    settings = {name: str(value) for name, value in tokenizer.special_tokens_map.items()}
    return value_digest([vocabulary, settings, tokenizer.chat_template, type(tokenizer).__name__])


def package_versions() -> dict[str, str]:
    """Versions of the packages that compute."""
    return {name: version(name) for name in ("sol_hf", "torch", "transformers")}


def cache_fingerprint(settings: Mapping[str, Any], is_dense: bool) -> dict[str, Any]:
    """The settings on which responses depend; of a dense run those of the base alone.

    Args:
        settings (`Mapping[str, Any]`): Of the adapter.
        is_dense (`bool`): Whether the base itself answers.

    Raises:
        ValueError: if the responses depend on something that has no fingerprint.
    """
    if settings["base_weights"] == UNKNOWN:
        raise ValueError(
            "A response cache needs to know the weights of the base, and some are offloaded: leave out `--use_cache`, "
            "or load the base without offloading."
        )
    if settings["action_processors"]:
        raise ValueError("A response cache cannot know what `action_processors` do: leave out `use_cache`.")
    kept = {name: value for name, value in settings.items() if name not in FOR_PEOPLE}
    if not is_dense:
        return kept
    options = {field.name for field in dataclasses.fields(DecodeOptions)} | {"seed"}
    return {name: v for name, v in kept.items() if name not in options and not name.startswith("policy")} | {
        "controller": DENSE
    }
