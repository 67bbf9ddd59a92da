# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""`generate(custom_generate=...)`: a function of the user that may call the model's `generate` again.

transformers passes the arguments of the call on to that function, but not the budget options, which are its own
parameters of [`SOLForCausalLM.generate`]. Calls that the function makes therefore inherit them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any


@dataclass
class CustomLoop:
    """A call with `custom_generate` that is running.

    Args:
        options (`dict[str, Any]`): Its budget options.
        cache (`Cache`, *optional*): Its cache.
        calls (`int`): Number of calls of `generate` that it has made.
    """

    options: dict[str, Any]
    cache: Any
    calls: int = 0


_RUNNING: ContextVar[CustomLoop | None] = ContextVar("sol_hf_custom_loop", default=None)


def inherit(options: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """The budget options of a call: its own, or if it has none, those of the custom loop that makes the call.

    Args:
        options (`dict[str, Any]`): Budget options of the call.
        arguments (`dict[str, Any]`): Further arguments of the call. The first call also inherits the cache.
    """
    loop = _RUNNING.get()
    if loop is None:
        return options
    loop.calls += 1
    if any(value is not None for value in options.values()):
        return options
    if loop.calls == 1 and arguments.get("past_key_values") is None and loop.cache is not None:
        arguments["past_key_values"] = loop.cache
    return dict(loop.options)


@contextmanager
def custom_loop(options: dict[str, Any], arguments: dict[str, Any]) -> Iterator[CustomLoop]:
    """Within the block, calls inherit the options if the call has a `custom_generate`; otherwise they inherit none."""
    loop = CustomLoop(options, arguments.get("past_key_values"))
    token = _RUNNING.set(loop if arguments.get("custom_generate") is not None else None)
    try:
        yield loop
    finally:
        _RUNNING.reset(token)
