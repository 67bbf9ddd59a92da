# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What the model arguments of `--model sol` name: options that may be misspelt, and the base."""

import difflib
import inspect
from typing import Any

from lm_eval.models.huggingface import HFLM

from ..configuration_sol import SOLConfig
from ..hub.base_loading import BaseNotNamedError, base_of
from .lm_eval_help import model_options
from .packaged_bases import base_source


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


def find_base(
    config: SOLConfig, policy: str, base: str | None, arguments: dict[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Id or folder of the base, and `HFLM`'s arguments with its revision.

    Raises:
        ValueError: if the config names no base that can be loaded, or a pull request of one.
    """
    if base is not None:
        return base_source(base), arguments
    try:
        name, revision = base_of(config, policy, arguments.get("revision"))
    except BaseNotNamedError as error:
        raise ValueError(
            f"The base of the policy in {policy} is missing: {error.problem}: add `base=` to the model arguments."
        ) from error
    return name, {**arguments, "revision": revision}
