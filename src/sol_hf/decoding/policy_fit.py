# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The config by which a model generates is the one that is saved with its policy."""

import dataclasses
from typing import Any

from transformers import PreTrainedConfig

from ..configuration_sol import SOLConfig
from ..modeling_sol_policy import SOLPolicyModel


DESCRIPTIVE = frozenset(
    "base_model_name_or_path base_model_revision base_fingerprint calibration calibration_unit calibration_conditions "
    "place_costs base_max_position_embeddings initializer_range sol_hf_version".split()
)
"""Fields of a config that describe where a policy comes from, and do not change what it computes."""


def differences(config: SOLConfig, other: SOLConfig) -> dict[str, tuple[Any, Any]]:
    """The values of two configs in the fields, levels of axes included, that change what is computed and differ."""
    inherited = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    own = [field.name for field in dataclasses.fields(SOLConfig) if field.name not in inherited]
    names = [name for name in (*own, *config.action_space.levels) if name not in DESCRIPTIVE]
    pairs = {name: (_plain(getattr(config, name, None)), _plain(getattr(other, name, None))) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def unite_configs(config: SOLConfig, policy: SOLPolicyModel) -> SOLConfig:
    """The one config of a model and its policy: the policy's, which is saved, with the descriptions of `config`.

    Args:
        config ([`SOLConfig`]): Config of the model.
        policy ([`SOLPolicyModel`]): The policy, possibly with an adapter.

    Raises:
        ValueError: if the configs differ in more than descriptions.
    """
    own = policy.config
    if config is own:
        return own
    check_agreement(config, policy)
    for name, value in vars(config).items():
        if value is not None and getattr(own, name, None) is None:
            setattr(own, name, value)
    return own


def check_agreement(config: SOLConfig, policy: SOLPolicyModel) -> None:
    """Raise a ValueError if the config of a model is not that of its policy, or the policy's sizes do not fit it."""
    found = {} if config is policy.config else differences(config, policy.config)
    if found:
        listed = ", ".join(f"`{name}` ({own!r}, the policy's {other!r})" for name, (own, other) in found.items())
        raise ValueError(
            f"The config of the model differs from that of its policy in {listed}: it would generate by one and save "
            "the other. Give both the same config: `model.config = model.policy.config`."
        )
    actions, steps = policy.action_embedding.num_embeddings - 1, policy.position_embedding.num_embeddings
    if actions != len(config.action_space):
        raise ValueError(
            f"The policy has {actions} actions, but its config describes {len(config.action_space)}: the levels of "
            "its axes cannot be changed once it is made."
        )
    if steps != config.episode_length:
        raise ValueError(
            f"The policy was made for episodes of {steps} steps, but its config has `episode_length` "
            f"{config.episode_length}."
        )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
