# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What a base must be, what a policy's config holds about it, and whether the two fit."""

import re
from pathlib import Path
from typing import Any

from huggingface_hub import constants, try_to_load_from_cache
from transformers import PreTrainedModel

from ..configuration_sol import SOLConfig
from ..modeling_sol_policy import SOLPolicyModel
from ..stored.fields import CHECKS
from ..stored.hub_names import hub_id, snapshot_commit
from .fingerprint import fingerprint_of


def without_wrapper(base: Any) -> PreTrainedModel:
    """The model inside a `PeftModel`, with its adapters active; any other causal LM unchanged.

    Raises:
        ValueError: for something that is no causal LM, that has a policy already, or that has an adapter which is not
            part of the model's layers (prompt learning).
    """
    if hasattr(base, "get_base_model"):
        if base.active_peft_config.is_prompt_learning:
            raise ValueError(
                f"A base with {base.active_peft_config.peft_type.value} has virtual tokens before its text, which a "
                "budget cannot count: use an adapter that changes layers, such as LoRA."
            )
        base = base.get_base_model()
    if isinstance(base, str):
        raise ValueError(
            f"The base must be a loaded model, not its name: pass AutoModelForCausalLM.from_pretrained({base!r})."
        )
    if not isinstance(base, PreTrainedModel):
        raise ValueError(f"The base must be a causal LM of transformers, got {type(base).__name__}.")
    if base.config.model_type == SOLConfig.model_type:
        own = "this policy itself" if isinstance(base, SOLPolicyModel) else "a model with a policy already"
        raise ValueError(f"The base is {own}: pass the causal LM beneath it (`model.base`).")
    if base.get_output_embeddings() is None or base.config.is_encoder_decoder:
        raise ValueError(
            f"{type(base).__name__} is not a causal LM with an LM head: load the base with AutoModelForCausalLM."
        )
    return base


def base_sizes(base: PreTrainedModel) -> dict[str, int]:
    """Sizes of the base that a policy has to fit: the fields `base_*_size` of [`SOLConfig`]."""
    embeddings = base.get_input_embeddings()
    return {
        "base_hidden_size": base.get_output_embeddings().weight.shape[-1],
        "base_embedding_size": embeddings.weight.shape[-1],
        "base_vocab_size": embeddings.weight.shape[0],
    }


def describe_base(config: SOLConfig, base: PreTrainedModel, model: PreTrainedModel) -> None:
    """Fill in what a config does not say yet about its base; the fingerprint is always that of this base.

    Args:
        config ([`SOLConfig`]): Changed in place.
        base (`PreTrainedModel`): As the user has it; the name of one with an adapter would be that of the plain base.
        model (`PreTrainedModel`): The causal LM itself.
    """
    name = None if hasattr(base, "peft_config") else hub_id(model.config.name_or_path)
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and CHECKS["base_max_position_embeddings"].problem(longest) is not None:
        longest = None  # some configs have -1, or no limit
    facts = {**base_sizes(model), "base_model_name_or_path": name, "base_max_position_embeddings": longest}
    for field, value in facts.items():
        if getattr(config, field) is None:
            setattr(config, field, value)
    if config.base_model_revision is None and name is not None and config.base_model_name_or_path == name:
        config.base_model_revision = commit_of(model)
    config.base_fingerprint = fingerprint_of(model)


def commit_of(model: PreTrainedModel) -> str | None:
    """The commit that a model was loaded from, if it is known.

    It is if transformers has noted it, if the model was loaded from a folder of the Hub's cache, or if the cache holds
    one commit of its repository only.
    """
    noted, path = getattr(model.config, "_commit_hash", None), model.config.name_or_path
    if isinstance(noted, str) and re.fullmatch("[0-9a-f]{40}", noted):
        return noted
    return snapshot_commit(path) or _only_commit(hub_id(path))


def commit_at(repo_id: str, revision: str, cache_dir: str | None = None) -> str | None:
    """The commit of a repository's revision in the cache."""
    path = try_to_load_from_cache(repo_id, "config.json", cache_dir=cache_dir, revision=revision)
    return snapshot_commit(str(path).removesuffix("config.json")) if isinstance(path, str) else None


def _only_commit(repo_id: str | None) -> str | None:
    """The commit of a repository of which the cache holds no other."""
    if repo_id is None:
        return None
    snapshots = Path(constants.HF_HUB_CACHE, f"models--{repo_id.replace('/', '--')}", "snapshots")
    commits = [path.parent for path in snapshots.glob("*/config.json")]
    if len(commits) != 1 or not any(any(commits[0].glob(f"*.{end}")) for end in ("safetensors", "bin")):
        return None  # without weights it is not the one that the model is from
    return commits[0].name


def check_fit(config: SOLConfig, base: PreTrainedModel, policy: SOLPolicyModel, check_base: bool = True) -> None:
    """Raise a ValueError if the policy does not fit the config or the base.

    Args:
        config ([`SOLConfig`]): What the model is to be.
        base (`PreTrainedModel`): The causal LM.
        policy ([`SOLPolicyModel`]): The policy.
        check_base (`bool`, *optional*, defaults to `True`): Also compare the vocabulary, on which the policy does not
            depend.
    """
    for name, size in base_sizes(base).items():
        expected = getattr(config, name)
        if expected is not None and expected != size and (check_base or name != "base_vocab_size"):
            what, kind = name.removeprefix("base_").replace("_", " "), type(base).__name__
            way_out = " If its embeddings were resized, pass `check_base=False`." if name == "base_vocab_size" else ""
            raise ValueError(f"The policy was made for a base with {what} {expected}, but {kind} has {size}.{way_out}")
    axes, named = policy.config.action_space.axis_names, config.action_space.axis_names
    if axes != named:
        raise ValueError(f"The policy has the axes {', '.join(axes)}, but its config names {', '.join(named)}.")
    actions = policy.action_embedding.num_embeddings - 1
    if actions != len(config.action_space):
        raise ValueError(f"The policy has {actions} actions, but its config describes {len(config.action_space)}.")
    for name in ("action_head", "budget_prior"):
        found, wanted = getattr(policy.config, name), getattr(config, name)
        if found != wanted:
            raise ValueError(f"The policy was made with `{name}={found!r}`, but its config says {wanted!r}.")
    if (config.action_head == "factored" or config.budget_prior) and policy.config.action_space != config.action_space:
        raise ValueError("The policy was made for other levels of the axes than those of its config.")
