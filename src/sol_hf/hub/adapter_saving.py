# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Saving an adapter on a policy, such that the folder can be loaded.

The folder has the adapter. If the policy beneath can be loaded by its name, unchanged, the adapter names it. Otherwise
the folder has that policy, too: a fresh one, one that was trained further, or one in a local folder when the adapter
is for the Hub.
"""

import copy
import json
import os
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_NAME, cached_file

from ..modeling_sol_policy import SOLPolicyModel


ADAPTER_CONFIG = "adapter_config.json"


def save_adapter(policy: PreTrainedModel, folder: str | os.PathLike, is_for_others: bool) -> SOLPolicyModel | None:
    """Write the adapter of a policy.

    Args:
        policy (`PeftModel` or [`SOLPolicyModel`] with an adapter): What to save.
        folder (`str` or `os.PathLike`): Folder to write to.
        is_for_others (`bool`): It will be read on other machines, where a local folder does not exist.

    Returns:
        [`SOLPolicyModel`] or `None`: The policy beneath, if it has to be saved, too.
    """
    policy.save_pretrained(folder)
    path = Path(folder, ADAPTER_CONFIG)
    stored = json.loads(path.read_text(encoding="utf-8"))
    name, commit = stored.get("base_model_name_or_path") or "", getattr(policy.config, "_commit_hash", None)
    beneath, is_local = policy_beneath(policy), os.path.isdir(name)
    is_named = bool(name) and not (is_local and is_for_others)
    is_named = is_named and _is_stored(beneath, name, None if is_local else commit)
    stored["base_model_name_or_path"] = name if is_named else None
    stored["revision"] = (commit or stored.get("revision")) if is_named and not is_local else None
    path.write_text(json.dumps(stored, indent=2, sort_keys=True), encoding="utf-8")
    return None if is_named else beneath


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


def _is_stored(policy: SOLPolicyModel, name: str, revision: str | None) -> bool:
    """Whether the repository or folder `name` has exactly these weights; files are not fetched for that."""
    if os.path.isdir(name):
        file = os.path.join(name, SAFE_WEIGHTS_NAME)
        found = file if os.path.isfile(file) else None
    else:
        try:
            found = cached_file(name, SAFE_WEIGHTS_NAME, revision=revision, local_files_only=True)
        except (OSError, ValueError):
            found = None
    if found is None:
        return False
    stored = load_file(found)
    own = policy.state_dict()
    return own.keys() == stored.keys() and all(
        own[key].dtype == stored[key].dtype and torch.equal(own[key], stored[key]) for key in own
    )
