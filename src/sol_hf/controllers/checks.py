# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Checks of the controller and the processors of a call."""

from collections.abc import Iterable
from typing import Any

from .base import Controller


def check_controller(controller: Any, processors: Any) -> None:
    """Raise a ValueError unless they are what their options take.

    Args:
        controller ([`Controller`], *optional*): Of a call.
        processors (`Iterable` of callables, *optional*): Of a call.
    """
    if isinstance(controller, type):
        raise ValueError(f"`controller` must be an object, got a class: pass `{controller.__name__}()`.")
    if controller is not None and not isinstance(controller, Controller):
        raise ValueError(
            f"`controller` must be a Controller, got {_name(controller)}: pass an object such as `FixedController()`, "
            "or one of a subclass of `Controller`."
        )
    if processors is None:
        return
    if not isinstance(processors, Iterable) or isinstance(processors, str):
        raise ValueError(f"`action_processors` must be a list, got {_name(processors)}: put it into one.")
    for processor in processors:
        if isinstance(processor, type) or not callable(processor):
            raise ValueError(
                f"`action_processors` must hold objects to call, such as `AxisBiasProcessor(token_keep=1)`, "
                f"got {_name(processor)}."
            )


def _name(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return repr(value) if isinstance(value, str) else type(value).__name__
