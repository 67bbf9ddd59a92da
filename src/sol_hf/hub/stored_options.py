# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What the `generation_config.json` of a policy may set.

The generation config of a loaded model is the base's. From the policy's file it takes

- the budget options, except `budget_mode="soft"` and a longer `budget_horizon` than that of the base: whether a
  budget is kept is for those who run the model to say;
- options of sampling, and the number of new tokens.

All else belongs to the base or to the caller: above all the ids of special tokens, which are those of one tokenizer.
"""

import copy
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers import GenerationConfig
from transformers.utils import logging

from ..stored.fields import Check, Flag, Real, Whole, shown
from ..stored.json_files import read_json_object


logger = logging.get_logger(__name__)

SAMPLING: dict[str, Check] = {
    "do_sample": Flag(),
    "temperature": Real(1e6),
    "top_k": Whole(0, 2**24),
    "top_p": Real(1, includes_lowest=True),
    "min_p": Real(1, includes_lowest=True),
    "typical_p": Real(1, includes_lowest=True),
    "epsilon_cutoff": Real(1, includes_lowest=True),
    "eta_cutoff": Real(1, includes_lowest=True),
    "repetition_penalty": Real(1e6),
    "no_repeat_ngram_size": Whole(0, 2**31),
    "max_new_tokens": Whole(1, 2**31),
    "min_new_tokens": Whole(0, 2**31),
}
"""Options of sampling and of the length that a policy may set, and their values."""
_NOTES = ("transformers_version", "_from_model_config", "_commit_hash", "_original_object_hash")


def merge_stored_options(path: Path, base: GenerationConfig, budget_options: Iterable[str]) -> GenerationConfig:
    """The base's generation config with the options that a policy's file may set; a warning names the others.

    Args:
        path (`Path`): The policy's `generation_config.json`.
        base (`GenerationConfig`): Of the base; not changed.
        budget_options (`Iterable[str]`): Names of the budget options that a generation config may hold.

    Raises:
        ValueError: if the file is damaged, or an option of sampling has a value that it cannot have.
    """
    merged, budget_options, ignored = copy.deepcopy(base), frozenset(budget_options), []
    for key, value in read_json_object(path).items():
        if key == "budget_mode" and value == "soft":
            logger.warning(
                f'{path} asks for `budget_mode="soft"`, which is ignored: a policy cannot loosen a budget. Pass '
                '`budget_mode="soft"` to `generate`, or set it on `model.generation_config`.'
            )
        elif key == "budget_horizon" and value == "generation" and getattr(base, key, None) == "episode":
            logger.warning(
                f'{path} asks for `budget_horizon="generation"`, which is ignored: the generation config of the base '
                "keeps every episode, and a policy cannot loosen a budget. Pass it to `generate` instead."
            )
        elif key in budget_options:
            setattr(merged, key, value)
        elif key in SAMPLING:
            setattr(merged, key, _checked(path, key, value))
        elif key not in _NOTES and value != getattr(base, key, None):
            ignored.append(key)
    if ignored:
        logger.warning(
            f"{path} sets {', '.join(sorted(ignored))}, which is ignored: these options are the base's, not the "
            "policy's. If you want them, set them on `model.generation_config`."
        )
    return merged


def _checked(path: Path, key: str, value: Any) -> Any:
    problem = None if value is None else SAMPLING[key].problem(value)
    if problem is not None:
        raise ValueError(f"{path}: `{key}` {problem}, got {shown(value)}.")
    return value


def check_numbers(path: Path, options: Mapping[str, Any]) -> None:
    """Raise a ValueError if a stored budget option is a number that is not finite."""
    for key, value in options.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{path}: `{key}` must be finite, got {value}.")
