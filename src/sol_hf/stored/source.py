# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Where the parts of a policy are: its own files, and the files of an adapter on it.

The folder of an adapter names the policy that it was trained on, or holds it as well:

    adapter_config.json, adapter_model.safetensors                     "base_model_name_or_path" is the policy
    adapter_config.json, ..., config.json, model.safetensors           the policy is in the same folder
"""

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from ..errors import missing_extra
from .fields import Whole, shown
from .files import find_file
from .hub_names import hub_id, snapshot_commit
from .json_files import read_json_object
from .weights import ADAPTER_WEIGHTS, read_header


CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
_RANK = Whole(1, 4_096)


@dataclass(frozen=True)
class PolicySource:
    """Where a policy is loaded from.

    Args:
        name_or_path (`str`): Repository or folder of the policy itself.
        location (`dict[str, Any]`): Its commit, and the Hub arguments.
        config (`Path`): Its `config.json`.
        adapter (`dict[str, Any]`): Arguments of transformers for the adapter; empty if there is none.
    """

    name_or_path: str
    location: dict[str, Any]
    config: Path
    adapter: dict[str, Any] = field(default_factory=dict)


def find_policy(
    name_or_path: str | os.PathLike, location: Mapping[str, Any], adapter: Mapping[str, Any] | None = None
) -> PolicySource:
    """Find a policy, and the adapter that belongs to it.

    Args:
        name_or_path (`str` or `os.PathLike`): Repository id or folder of a policy, or of an adapter on one.
        location (`Mapping[str, Any]`): `revision`, `subfolder` and Hub arguments.
        adapter (`Mapping[str, Any]`, *optional*): What an Auto class has found: with `_adapter_model_path`,
            `name_or_path` is the policy beneath that adapter.

    Raises:
        OSError: if there is neither a policy nor an adapter, or the Hub cannot be reached.
        ValueError: if the adapter's files are damaged, or it names no policy.
    """
    name, adapter = str(name_or_path), dict(adapter or {})
    if not os.path.isdir(name) and hub_id(name) is None:
        raise OSError(f"{name} is neither a folder nor the id of a repository on the Hub.")
    config, pinned = _pin(name, location)
    if adapter.get("_adapter_model_path") is not None:
        check_adapter(adapter["_adapter_model_path"], dict(location) | adapter)
        return PolicySource(name, pinned, _needed(config, name), adapter)
    adapter_config = find_file(name, ADAPTER_CONFIG, pinned)
    if adapter_config is None:
        return PolicySource(name, pinned, _needed(config, name))
    stored = check_adapter(name, pinned)
    keys = ("revision", "subfolder", "token")
    found = {"_adapter_model_path": name, **{key: pinned[key] for key in keys if pinned.get(key)}}
    if config is not None:
        return PolicySource(name, pinned, config, found)
    policy = stored.get("base_model_name_or_path")
    if not isinstance(policy, str) or not policy:
        raise ValueError(
            f"The adapter in {name} does not name the policy that it was trained on: load that policy, and put the "
            "adapter on it with PeftModel.from_pretrained(model.policy, adapter)."
        )
    if not os.path.isdir(policy) and hub_id(policy) is None:
        raise ValueError(
            f"The adapter in {name} was trained on a policy in a folder that is not here ({policy}): load that "
            "policy, and put the adapter on it with PeftModel.from_pretrained(model.policy, adapter)."
        )
    beneath = {key: value for key, value in location.items() if key not in ("revision", "subfolder")}
    try:
        config, pinned = _pin(policy, beneath | {"revision": stored.get("revision") or "main"})
    except OSError as error:
        raise OSError(f"The policy {policy}, which the adapter in {name} is for, is not found: {error}") from error
    return PolicySource(policy, pinned, _needed(config, policy), found)


def check_adapter(name_or_path: str | os.PathLike, location: Mapping[str, Any]) -> dict[str, Any]:
    """The content of an `adapter_config.json`.

    Raises:
        ValueError: if a file is damaged, its ranks would take too much memory, or its weights are not safetensors.
        ModuleNotFoundError: if PEFT is not installed; without it the adapter would be left out.
    """
    if importlib.util.find_spec("peft") is None:
        missing = ModuleNotFoundError("No module named 'peft'", name="peft")
        raise missing_extra(f"The adapter in {name_or_path}", missing)
    path = find_file(name_or_path, ADAPTER_CONFIG, location)
    if path is None:
        raise ValueError(f"{name_or_path} has no {ADAPTER_CONFIG}.")
    stored = read_json_object(path)
    patterns = stored.get("rank_pattern") or {}
    ranks = [stored.get("r"), *(patterns.values() if isinstance(patterns, dict) else [patterns])]
    for rank in ranks:
        problem = None if rank is None else _RANK.problem(rank)
        if problem is not None:
            raise ValueError(f"{path}: a rank (`r`, `rank_pattern`) {problem}, got {shown(rank)}.")
    weights = find_file(name_or_path, ADAPTER_WEIGHTS, location)
    if weights is None:
        raise ValueError(f"{name_or_path} has no {ADAPTER_WEIGHTS}. Adapters are read from safetensors files only.")
    read_header(weights)
    return stored


def _pin(name: str, location: Mapping[str, Any]) -> tuple[Path | None, dict[str, Any]]:
    """The config of a repository if it has one, and the location with the commit that it is from.

    All other files are then read from the same commit.
    """
    found = cached_file(name, CONFIG, **{key: value for key, value in location.items() if value is not None})
    if found is None:
        return None, dict(location)
    subfolder = location.get("subfolder") or ""
    root = str(found).removesuffix(os.path.join(subfolder, CONFIG))
    commit = None if os.path.isdir(name) else snapshot_commit(root)
    return Path(found), dict(location) | ({"revision": commit} if commit else {})


def _needed(config: Path | None, name: str) -> Path:
    if config is None:
        raise OSError(f"{name} has no {CONFIG}: it is neither a policy nor an adapter on one.")
    return config
