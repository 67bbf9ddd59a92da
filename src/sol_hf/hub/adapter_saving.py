# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Saving an adapter on a policy, such that the folder can be loaded.

The folder has the adapter. If the policy beneath is in a repository on the Hub, unchanged, the adapter names it.
Otherwise the folder has that policy, too: a fresh one, one that was trained further, or one from a local folder, whose
path would mean nothing elsewhere.
"""

import contextlib
import copy
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_NAME, cached_file, logging

from ..modeling_sol_policy import SOLPolicyModel
from ..stored.hub_names import hub_id
from ..stored.json_files import read_json_object
from ..stored.source import ADAPTER_CONFIG
from ..stored.weights import ADAPTER_WEIGHTS
from .model_card import CARD_NAME


logger = logging.get_logger(__name__)

DEFAULT = "default"
"""Name of an adapter for which PEFT makes no folder of its own."""


def save_adapter(
    policy: Any,
    folder: str | os.PathLike,
    repo_id: str | None = None,
    state_dict: Mapping[str, torch.Tensor] | None = None,
) -> SOLPolicyModel | None:
    """Write the adapter of a policy.

    Args:
        policy (`PeftModel` or [`SOLPolicyModel`] with an adapter): What to save.
        folder (`str` or `os.PathLike`): Folder to write to.
        repo_id (`str`, *optional*): Repository that the folder is for.
        state_dict (`Mapping[str, torch.Tensor]`, *optional*): Weights instead of those that the policy has now.

    Returns:
        [`SOLPolicyModel`] or `None`: The policy beneath, if it has to be saved, too.

    Raises:
        ValueError: if not exactly one adapter is active, or the adapter has replaced weights of the policy.
    """
    inner = policy.get_base_model() if hasattr(policy, "get_base_model") else policy
    name, commit = hub_id(inner.name_or_path), getattr(policy.config, "_commit_hash", None)
    path, card = Path(folder, ADAPTER_CONFIG), Path(folder, CARD_NAME)
    had_card = card.exists()
    with _named(policy, inner, name):
        _save_active(policy, Path(folder), {} if state_dict is None else {"state_dict": dict(state_dict)})
    stored, beneath = read_json_object(path), policy_beneath(policy)
    is_named = name is not None and _is_stored(beneath, name, commit)
    stored["base_model_name_or_path"] = name if is_named else repo_id
    stored["revision"] = (commit or stored.get("revision")) if is_named else None
    path.write_text(json.dumps(stored, indent=2, sort_keys=True), encoding="utf-8")
    if not is_named and not had_card:
        card.unlink(missing_ok=True)  # PEFT's card says nothing of the policy that is beside it
    return None if is_named else beneath


def _save_active(policy: Any, folder: Path, kwargs: dict[str, Any]) -> None:
    """Write the adapter that is active to `folder` itself, where it is loaded from, whatever its name."""
    active = policy.active_adapters
    active = list(active() if callable(active) else active)
    if len(active) != 1:
        raise ValueError(
            f"A folder holds one adapter, but of this policy {' and '.join(map(repr, active)) or 'none'} is active: "
            "choose one with `model.policy.set_adapter(name)`, or save `model.policy.merge_and_unload()`."
        )
    name, others = active[0], sorted(policy.peft_config.keys() - active)
    is_wrapped = hasattr(policy, "get_base_model")  # by PEFT, which saves all adapters
    if others:
        logger.warning_once(
            f"The folder will be loaded with the active adapter, {name!r}. The others ({', '.join(others)}) are "
            + ("in folders of their own, beside it." if is_wrapped else "not saved: make one active to save it.")
        )
    policy.save_pretrained(folder, **kwargs)
    if is_wrapped and name != DEFAULT:
        if DEFAULT in others:
            _move((folder / ADAPTER_CONFIG, folder / ADAPTER_WEIGHTS), folder / DEFAULT)
        _move((folder / name).iterdir(), folder)
        (folder / name).rmdir()


def _move(files: Iterable[Path], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for path in list(files):
        path.replace(folder / path.name)


@contextlib.contextmanager
def _named(policy: Any, inner: PreTrainedModel, name: str | None) -> Iterator[None]:
    """Let PEFT name the policy so in all that it writes, instead of by a path."""
    configs = list(policy.peft_config.values())
    before = [config.base_model_name_or_path for config in configs]
    path, path_of_config = inner.__dict__["name_or_path"], inner.config.name_or_path
    try:
        for config in configs:
            config.base_model_name_or_path = name
        inner.__dict__["name_or_path"] = inner.config.name_or_path = name or ""
        yield
    finally:
        inner.__dict__["name_or_path"], inner.config.name_or_path = path, path_of_config
        for config, old in zip(configs, before, strict=True):
            config.base_model_name_or_path = old


def policy_beneath(policy: PreTrainedModel) -> SOLPolicyModel:
    """A copy of the policy without its adapter.

    Raises:
        ValueError: if the adapter has replaced weights of the policy.
    """
    weights, names = policy.state_dict(), names_beneath(policy)
    with torch.random.fork_rng(devices=[]):  # a save must not change what the run draws next
        plain = SOLPolicyModel(copy.deepcopy(policy.config))
    plain.to(weights[next(iter(names.values()))].dtype)
    plain.load_state_dict({name: weights[full].detach().cpu() for name, full in names.items()})
    return plain


def load_beneath(policy: PreTrainedModel, folder: str | os.PathLike) -> None:
    """Give the policy beneath an adapter the weights in a folder, if the folder has them."""
    file = Path(folder, SAFE_WEIGHTS_NAME)
    if not file.is_file():
        return
    stored, own, names = load_file(file), policy.state_dict(), names_beneath(policy)
    if stored.keys() != names.keys():
        raise ValueError(f"{file} is of another policy than the one that the adapter is trained on.")
    with torch.no_grad():
        for name, full in names.items():
            own[full].copy_(stored[name])


def names_beneath(policy: PreTrainedModel) -> dict[str, str]:
    """Names of the weights of a policy with an adapter, by their names in a policy without one."""
    found = {}
    for full in policy.state_dict():
        name = full.removeprefix("base_model.model.").replace(".base_layer.", ".").replace(".original_module.", ".")
        found[name] = full
    with torch.device("meta"):
        wanted = SOLPolicyModel(copy.deepcopy(policy.config)).state_dict()
    missing = sorted(wanted.keys() - found.keys())
    if missing:
        raise ValueError(
            f"The policy beneath the adapter cannot be saved, the adapter has replaced {', '.join(missing[:4])}: save "
            "`model.policy.merge_and_unload()` as a policy of its own."
        )
    return {name: found[name] for name in wanted}


def _is_stored(policy: SOLPolicyModel, repo_id: str, revision: str | None) -> bool:
    """Whether a repository has exactly these weights, as far as the cache knows; nothing is fetched for that."""
    try:
        found = cached_file(repo_id, SAFE_WEIGHTS_NAME, revision=revision, local_files_only=True)
    except (OSError, ValueError):
        found = None
    if found is None:
        return False
    stored = load_file(found)
    own = policy.state_dict()
    return own.keys() == stored.keys() and all(
        own[key].dtype == stored[key].dtype and torch.equal(own[key], stored[key]) for key in own
    )
