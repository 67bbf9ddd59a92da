# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""How a policy was made, for its model card: the settings of its training that differ from their defaults."""

import dataclasses
import os
from collections.abc import Mapping
from enum import Enum
from typing import Any

import yaml


UNSAID = ("_dir", "_file", "_path", "path_", "run_name", "hub_", "report_to", "push_", "logging_", "disable_")
"""Parts of names of settings that say where files are or what is shown, and not what is computed."""


def recipe_of(settings: Any, **further: Any) -> dict[str, Any]:
    """The values of a dataclass that were changed, as plain types.

    Args:
        settings: A dataclass, such as [`SOLGRPOConfig`].
        further: Entries to put before them, such as the number of updates.
    """
    changed = dict(further)
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        value = value.value if isinstance(value, Enum) else value
        if field.init and value != default_of(field) and _is_plain(value) and _may_be_said(field.name, value):
            changed[field.name] = value
    return changed


def recipe_text(stages: Mapping[str, Mapping[str, Any]] | None) -> str | None:
    """The stages of a training as YAML; `None` if nothing is known.

    Args:
        stages (`Mapping[str, Mapping[str, Any]]`, *optional*): Settings by the name of the class that trained.
    """
    if not stages:
        return None
    return yaml.safe_dump({name: dict(values) for name, values in stages.items()}, sort_keys=False).rstrip()


def default_of(field: dataclasses.Field) -> Any:
    """The default of a dataclass field; `None` for one without."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _may_be_said(name: str, value: Any) -> bool:
    return not any(part in name for part in UNSAID) and not (isinstance(value, str) and os.path.isabs(value))


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(_is_plain(item) for item in value)
    return value is None or type(value) in (bool, int, float, str)
