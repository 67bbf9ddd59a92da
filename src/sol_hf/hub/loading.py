# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Loading a policy, with errors for damaged files and for weights that do not fit."""

import os
from typing import Any

from safetensors import SafetensorError
from transformers import PreTrainedModel

from ..configuration_sol import SOLConfig
from ..modeling_sol_policy import SOLPolicyModel


def load_policy(name_or_path: str | os.PathLike, config: SOLConfig | None, location: dict[str, Any]) -> SOLPolicyModel:
    """Load the policy of a repository or folder.

    Args:
        name_or_path (`str` or `os.PathLike`): Repository id or folder.
        config ([`SOLConfig`], *optional*): Instead of the stored one.
        location (`dict[str, Any]`): `revision`, `subfolder` and Hub arguments.

    Raises:
        ValueError: if the weights are damaged, or do not fit the config.
    """
    if config is None:  # read here, because before transformers 5.22 model classes do not pass on the token
        stored, _ = SOLConfig.get_config_dict(name_or_path, **location)
        config = SOLConfig.from_dict(stored) if stored else None  # the folder of an adapter has no config
    try:
        policy, info = SOLPolicyModel.from_pretrained(
            name_or_path, config=config, output_loading_info=True, ignore_mismatched_sizes=True, **location
        )
    except SafetensorError as error:
        raise ValueError(
            f"The policy weights in {name_or_path} are truncated or corrupt ({error}): fetch them again."
        ) from error
    problems = [f"missing {name}" for name in info["missing_keys"]]
    problems += [f"unexpected {name}" for name in info["unexpected_keys"]]
    problems += [
        f"{name} has shape {tuple(found)}, the config asks for {tuple(wanted)}"
        for name, found, wanted in info["mismatched_keys"]
    ]
    if problems:
        raise ValueError(f"The policy weights in {name_or_path} do not fit their config: {'; '.join(problems)}.")
    return policy.eval()


def without_wrapper(base: PreTrainedModel) -> PreTrainedModel:
    """The model inside a `PeftModel`, with its adapters active; any other model unchanged.

    Raises:
        ValueError: for an adapter that is not part of the model's layers (prompt learning).
    """
    if not hasattr(base, "get_base_model"):
        return base
    if base.active_peft_config.is_prompt_learning:
        raise ValueError(
            f"A base with {base.active_peft_config.peft_type.value} has virtual tokens before its text, which a "
            "budget cannot count: use an adapter that changes layers, such as LoRA."
        )
    return base.get_base_model()


def base_sizes(base: PreTrainedModel) -> dict[str, int]:
    """Sizes of the base that a policy has to fit: the fields `base_*_size` of [`SOLConfig`]."""
    embeddings = base.get_input_embeddings()
    return {
        "base_hidden_size": base.get_output_embeddings().weight.shape[-1],
        "base_embedding_size": embeddings.weight.shape[-1],
        "base_vocab_size": embeddings.weight.shape[0],
    }


def base_facts(base: PreTrainedModel) -> dict[str, str | int | None]:
    """Further config fields about the base, which a policy does not have to fit: its name and its longest text."""
    adapted = hasattr(base, "peft_config")  # then the stored name would be that of the base without its adapter
    return {
        "base_model_name_or_path": None if adapted else base.config.name_or_path or None,
        "base_max_position_embeddings": getattr(base.config, "max_position_embeddings", None),
    }


def check_fit(config: SOLConfig, base: PreTrainedModel, policy: SOLPolicyModel) -> None:
    """Raise a ValueError if the policy does not fit the config or the base."""
    for name, size in base_sizes(base).items():
        expected = getattr(config, name)
        if expected is not None and expected != size:
            what = name.removeprefix("base_").replace("_", " ")
            raise ValueError(
                f"The policy was made for a base with {what} {expected}, but {type(base).__name__} has {size}."
            )
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
