# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What the model arguments of `--model sol` name: options that may be misspelt, and the base."""

import difflib
import inspect
from typing import Any

from lm_eval.models.huggingface import HFLM

from ..configuration_sol import SOLConfig
from .lm_eval_help import model_options
from .smollm2 import fetch_smollm2


SMOLLM2 = "smollm2-135m"


def refuse_misspelt(arguments: dict[str, Any], adapter: type) -> None:
    """Raise a ValueError for an argument that is none of `HFLM`, and nearly the name of one of ours.

    Args:
        arguments (`dict[str, Any]`): Arguments that are left for `HFLM`, which passes unknown ones on to the base.
        adapter (`type`): The class whose constructor has our arguments.
    """
    own = [name for name in inspect.signature(adapter).parameters if name != "kwargs"]
    for name in arguments:
        near = difflib.get_close_matches(name, (*model_options(), *own), n=1, cutoff=0.75)
        if near and name not in inspect.signature(HFLM).parameters:
            raise ValueError(f"Unknown model argument `{name}`: did you mean `{near[0]}`?")


def find_base(config: SOLConfig, base: str | None, arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Id or folder of the base, and `HFLM`'s arguments with its revision."""
    if base == SMOLLM2:
        return str(fetch_smollm2()), arguments
    if base is not None:
        return base, arguments
    if config.base_model_name_or_path is None:
        raise ValueError("The policy's config names no base model: add `base=` to the model arguments.")
    return config.base_model_name_or_path, {"revision": config.base_model_revision or "main"} | arguments
