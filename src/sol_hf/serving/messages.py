# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The messages of a chat, as a chat template can read them."""

from typing import Any

from .errors import RequestRefusedError


ROLES = ("system", "developer", "user", "assistant", "tool")
TEXT_PARTS = ("text", "input_text", "output_text")


def check_messages(messages: Any) -> None:
    """Raise a [`RequestRefusedError`] for messages that are none, or that have other parts than text."""
    if not isinstance(messages, list) or not messages:
        raise RequestRefusedError("`messages` must be a list of at least one message.", "messages")
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise RequestRefusedError(f"`{where}` must have a `role`: one of {', '.join(ROLES)}.", where)
        content = message.get("content")
        calls = message.get("tool_calls")
        if calls is not None and not _are_calls(calls):
            raise RequestRefusedError(f"`{where}.tool_calls` must be a list of calls of functions.", where)
        if content is None and calls is None:
            raise RequestRefusedError(f"`{where}` must have a `content`.", where)
        if not isinstance(content, str | None) and not _are_text_parts(content):
            raise RequestRefusedError(
                f"`{where}.content` must be a text, or a list of text parts: this is a model of text.",
                where,
            )


def _are_text_parts(content: Any) -> bool:
    return isinstance(content, list) and all(
        isinstance(part, dict) and part.get("type") in TEXT_PARTS and isinstance(part.get("text"), str)
        for part in content
    )


def _are_calls(calls: Any) -> bool:
    if not isinstance(calls, list):
        return False
    functions = [call.get("function") if isinstance(call, dict) else None for call in calls]
    return all(isinstance(each, dict) and isinstance(each.get("arguments"), str | dict) for each in functions)
