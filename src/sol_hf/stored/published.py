# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Checkpoints as published with the method: a torch file with `policy_state_dict` and `cfg`, and a YAML file.

A torch file is a pickle, which can run code. It is read with `weights_only`, which allows tensors and plain values and
nothing else, and never in another way.
"""

import os
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from .fields import is_number, shown
from .json_files import MOST_BYTES


WEIGHTS, SETTINGS = "policy_state_dict", "cfg"
WRAPPERS = ("module.", "_orig_mod.")
"""What other wrappers put before the names of parameters."""


def read_checkpoint(path: str | os.PathLike) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The weights and the settings in a published checkpoint.

    Args:
        path (`str` or `os.PathLike`): The torch file.

    Returns:
        The tensors by their published names, on the CPU, and what `cfg` holds (nothing, if there is none).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, holds objects other than tensors and plain values, or no finite weights of a
            policy; the message says what to do.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no checkpoint {path}.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds objects that are not tensors or plain values, or is no torch file. Loading them could run "
            "code, so they are not loaded. Who has the code of the training can write a plain file: "
            f"torch.save({{'{WEIGHTS}': policy.state_dict(), '{SETTINGS}': dict(vars(cfg))}}, path)."
        ) from error
    except OSError:
        raise
    except Exception as error:  # what torch's reader raises for bytes that are no pickle can be anything
        kind = type(error).__name__
        raise ValueError(f"{path} is truncated or damaged, or is no torch file ({kind}: {error}).") from error
    weights = content.get(WEIGHTS) if isinstance(content, Mapping) else None
    if not isinstance(weights, Mapping) or not weights:
        found = ", ".join(map(shown, content)) if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(f"{path} has no `{WEIGHTS}`, but {found}: it is no published checkpoint of a policy.")
    tensors = {}
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor) or not value.is_floating_point():
            raise ValueError(f"{path}: `{WEIGHTS}` holds {shown(name)}, which is not a tensor of floats.")
        if not bool(value.isfinite().all()):
            raise ValueError(f"{path}: the weight {name} is NaN or infinite.")
        tensors[_without_wrappers(name)] = value.detach()
    settings = content.get(SETTINGS)
    return tensors, dict(settings) if isinstance(settings, Mapping) else {}


def read_yaml(path: str | os.PathLike) -> dict[str, Any]:
    """The mapping in a YAML file of plain values.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is too large, damaged, or holds something else than a mapping; the message names it.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no config {path}.")
    if os.path.getsize(path) > MOST_BYTES:
        raise ValueError(f"{path} has {os.path.getsize(path):,} bytes; at most {MOST_BYTES:,} are read.")
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} must hold a mapping, but holds a {type(content).__name__}.")
    return dict(content)


def find_setting(places: Mapping[str, Mapping[str, Any]], names: tuple[str, ...]) -> Any:
    """The value of a setting that may have several names, at any depth; `None` if it is nowhere.

    Args:
        places (`Mapping[str, Mapping]`): Settings by where they are from, for messages; the first that has it counts.
        names (`tuple[str, ...]`): Its names.

    Raises:
        ValueError: if one place gives it several values.
    """
    for place, settings in places.items():
        found = [value for name, value in _all_settings(settings) if name in names and value is not None]
        if any(value != found[0] for value in found):
            raise ValueError(f"{place} has several values of {' or '.join(names)}: {', '.join(map(shown, found))}.")
        if found:
            return found[0]
    return None


def levels_of(value: Any, name: str) -> list[float]:
    """The levels of an axis, as numbers or as published tags: `s60` is 0.6, `q8` is 8.

    Raises:
        ValueError: if the value is no list of these.
    """
    if isinstance(value, list | tuple) and value:
        numbers = [_level(item) for item in value]
        if None not in numbers:
            return [number for number in numbers if number is not None]
    raise ValueError(f"`{name}` must be a list of levels, such as [0.2, 1.0] or tags, got {shown(value)}.")


def _level(item: Any) -> float | None:
    if is_number(item):
        return item
    if isinstance(item, str) and item[:1] in tuple("ksq") and item[1:].isdecimal():
        return int(item[1:]) if item[0] == "q" else int(item[1:]) / 100
    return None


def _all_settings(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _all_settings(value)
        else:
            yield str(name), value


def _without_wrappers(name: str) -> str:
    while name.startswith(WRAPPERS):
        name = name.partition(".")[2]
    return name
