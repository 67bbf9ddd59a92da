# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Options of transformers' generate that cannot be used under a budget.

What a caller asks for is refused. What is only stored in a model's generation_config.json or config.json is a default:
if it is about speed, memory or further outputs, it is ignored. If it changes the text, it is refused too, because
without it the text would be another.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import GenerationConfig


@dataclass(frozen=True)
class Unsuitable:
    """An option with values that a budget does not allow.

    Args:
        name (`str`): Name of the option.
        is_allowed (`Callable`): Whether a value can be used under a budget.
        reason (`str`): The error message for a value that cannot, with `{value}`.
        instead (`Any`): The value that takes the place of a stored one.
        changes_text (`bool`): Whether a stored value is refused, too.
        harmless (`Any`, *optional*): A value that is replaced even if the caller asks for it, since nothing changes.
    """

    name: str
    is_allowed: Callable[[Any], bool]
    reason: str
    instead: Any = None
    changes_text: bool = False
    harmless: Any = None


def _is_off(value: Any) -> bool:
    return value is None or value is False


_DRAFTS = (
    "Generation mode `assisted_generation` cannot run under a budget: it verifies several tokens in one forward, but "
    "a budget chooses the compute of every token on its own. Leave out `{name}={value!r}`."
)
UNSUITABLE = (
    Unsuitable(
        "use_cache", lambda value: value is not False, "A budget needs the cache: remove `use_cache=False`.", True
    ),
    Unsuitable(
        "cache_implementation",
        lambda value: value is None,
        "A budget needs its own cache, so `cache_implementation={value!r}` (static, quantized, offloaded, or the "
        "paged cache of continuous batching) cannot be used with it: leave it out.",
        harmless="dynamic",
    ),
    Unsuitable("prompt_lookup_num_tokens", _is_off, _DRAFTS),
    Unsuitable("assistant_early_exit", _is_off, _DRAFTS),
    Unsuitable("use_mtp", _is_off, _DRAFTS, False),
    Unsuitable(
        "output_attentions",
        _is_off,
        "`output_attentions` cannot be used under a budget: attention over selected keys has no weights for the "
        "others. Leave it out, or call `model.base.generate`.",
        False,
    ),
    Unsuitable(
        "guidance_scale",
        lambda value: value is None or value == 1,
        "`guidance_scale={value!r}` runs the base a second time for every token, without the budget: pass "
        "`guidance_scale=1`, or leave out the budget.",
        changes_text=True,
    ),
)


def replaced_values(
    arguments: Mapping[str, Any],
    generation_config: GenerationConfig | None,
    stored: GenerationConfig,
    origin: str = "",
) -> dict[str, Any]:
    """The values that a call under a budget uses instead of stored ones that it cannot use.

    Args:
        arguments (`Mapping[str, Any]`): Of the `generate` call.
        generation_config (`GenerationConfig`, *optional*): Of the `generate` call. A value that equals the stored one
            was not asked for: such a config is often a changed copy of the model's own.
        stored (`GenerationConfig`): The model's own.
        origin (`str`): [`DecodeControls.origin`].

    Raises:
        ValueError: for an option that the caller asks for, or that changes the text.
    """
    replaced = {}
    for option in UNSUITABLE:
        name, default = option.name, getattr(stored, option.name, None)
        passed = arguments.get(name)
        if passed is None and generation_config is not None:
            found = getattr(generation_config, name, None)
            passed = found if found != default else None
        value = default if passed is None else passed
        if option.is_allowed(value):
            continue
        if option.changes_text or (passed is not None and passed != option.harmless):
            raise ValueError(option.reason.format(name=name, value=value) + origin)
        replaced[name] = option.instead
    return replaced
