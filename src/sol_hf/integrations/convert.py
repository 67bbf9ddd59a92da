# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Policies from checkpoints that were published with the method."""

import os
from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from ..configuration_sol import SOLConfig
from ..hub.base_model import describe_base, without_wrapper
from ..modeling_sol import SOLForCausalLM
from ..modeling_sol_policy import SOLPolicyModel
from ..stored.fields import shown
from ..stored.published import find_setting, levels_of, read_checkpoint, read_yaml


AXES: dict[str, tuple[str, ...]] = {
    "token_keep": ("token_keep", "token_keeps", "token_keep_levels", "kappa"),
    "mlp_keep": ("mlp_keep", "mlp_keeps", "mlp_keep_levels", "rho"),
    "bits": ("bits", "bit_widths", "bits_levels"),
}
"""The axes, and the names that files have for their levels."""
GRIDS: dict[str, dict[str, list[float]]] = {
    "FL": {
        "token_keep": [level / 10 for level in range(1, 11)],
        "mlp_keep": [level / 100 for level in range(40, 101, 5)],
        "bits": list(range(5, 17)),
    }
}
"""Published action spaces that have a name."""
GRID_NAMES = ("action_space", "action_grid", "grid")
SETTINGS: dict[str, tuple[str, ...]] = {
    "policy_num_heads": ("policy_num_heads", "n_heads", "num_heads"),
    "episode_length": ("episode_length", "episode_len", "horizon"),
    "page_size": ("page_size",),
    "sink_tokens": ("sink_tokens", "sink"),
    "window_tokens": ("window_tokens", "window"),
    "criterion": ("criterion",),
}
"""Fields of [`SOLConfig`] that the weights do not show, and the names that files have for them."""


def convert_checkpoint(
    checkpoint: str | os.PathLike,
    config: str | os.PathLike | Mapping[str, Any] | None,
    base: str | os.PathLike | PreTrainedModel,
    out: str | os.PathLike,
    *,
    revision: str | None = None,
) -> SOLConfig:
    """Write the policy of a published checkpoint as a folder that `from_pretrained` loads.

    The checkpoint is read with `weights_only`: no code in it is run. Of the base only the config is needed.

    Args:
        checkpoint (`str` or `os.PathLike`): Torch file with `policy_state_dict` and `cfg`.
        config (`str`, `os.PathLike` or `Mapping`, *optional*): YAML file, or its content, with the levels of the axes
            (`token_keep`, `mlp_keep`, `bits`, or `action_space: FL`), and `n_heads`, `episode_length`, `page_size`,
            `sink_tokens`, `window_tokens` and `criterion` where they are not in `cfg`. What neither says has the
            default of [`SOLConfig`].
        base (`str`, `os.PathLike` or `PreTrainedModel`): Hub id or folder of the base, or the loaded base, of which
            the policy then also stores the fingerprint.
        out (`str` or `os.PathLike`): Folder to write to.
        revision (`str`, *optional*): Of the base on the Hub.

    Returns:
        [`SOLConfig`]: The config that was written.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file is damaged or not of the method, a setting is missing or contradicts the weights, or the
            policy does not fit the base. Nothing is written then.

    Examples:

    ```python
    convert_checkpoint("policy_latest.pt", "config.yml", "meta-llama/Llama-3.2-1B", "sol-llama-1b")
    ```
    """
    weights, settings = read_checkpoint(checkpoint)
    given = dict(config) if isinstance(config, Mapping) else {} if config is None else read_yaml(config)
    places = {"the config": given, f"`cfg` of {checkpoint}": settings}
    model = base if isinstance(base, PreTrainedModel) else _empty_base(base, revision)
    sol_config = SOLConfig(**_levels(places), **_sizes(weights), **_further(places))
    describe_base(sol_config, model, without_wrapper(model))
    if not isinstance(base, PreTrainedModel):
        sol_config.base_fingerprint = None  # nothing of its weights is known
    _check_against_weights(sol_config, weights)
    policy = SOLPolicyModel(sol_config).load_published(weights).eval()
    SOLForCausalLM(sol_config, model, policy).save_pretrained(out)
    return policy.config


def _empty_base(base: str | os.PathLike, revision: str | None) -> PreTrainedModel:
    """A base of which there is only the shape."""
    config = AutoConfig.from_pretrained(base, revision=revision or "main")
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def _levels(places: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    name = find_setting(places, GRID_NAMES)
    if isinstance(name, str) and name in GRIDS:
        return dict(GRIDS[name])
    found = {axis: find_setting(places, names) for axis, names in AXES.items()}
    missing = [axis for axis, value in found.items() if value is None]
    if missing:
        known = "" if name is None else f" The action space {shown(name)} is not known by name."
        raise ValueError(
            f"The levels of {', '.join(missing)} are nowhere in {' and '.join(places)}.{known} Write them into the "
            "YAML file, for example `token_keep: [0.2, 1.0]`."
        )
    return {axis: levels_of(value, axis) for axis, value in found.items()}


def _sizes(weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """What the shapes of the weights say."""
    try:
        width = len(weights["obs_proj.weight"])
        blocks = {name.split(".")[1] for name in weights if name.startswith("blocks.")}
        return dict(
            policy_hidden_size=width,
            policy_num_layers=len(blocks),
            policy_mlp_ratio=len(weights["blocks.0.ff.0.weight"]) / width,
            action_embedding_size=weights["action_emb.weight"].shape[1],
        )
    except (KeyError, IndexError) as error:
        raise ValueError(
            f"The checkpoint has no weight {error}: it is not of the published policy network."
        ) from error


def _further(places: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    found = {field: find_setting(places, names) for field, names in SETTINGS.items()}
    if found["policy_num_heads"] is None:
        raise ValueError(
            "The weights do not show the policy's number of attention heads: add `n_heads` to the YAML file."
        )
    return {field: value for field, value in found.items() if value is not None}


def _check_against_weights(config: SOLConfig, weights: Mapping[str, torch.Tensor]) -> None:
    """Raise a ValueError if the action space, the episode or the base is another than that of the weights."""
    actions, trained = len(config.action_space), len(weights["action_emb.weight"]) - 1
    if actions != trained:
        counts = " x ".join(f"{len(values)} `{name}`" for name, values in config.action_space.levels.items())
        raise ValueError(f"The checkpoint has {trained} actions, but the levels give {actions} ({counts}).")
    positions = len(weights.get("pos_emb.weight", ()))
    if positions < config.episode_length:
        raise ValueError(
            f"The checkpoint has {positions} positions, fewer than the {config.episode_length} steps of an episode: "
            "write its `episode_length` into the YAML file."
        )
    seen = weights["obs_proj.weight"].shape[1] - 64 - config.action_embedding_size
    sizes = (config.base_hidden_size or 0) + (config.base_embedding_size or 0)
    if seen != sizes:
        raise ValueError(
            f"The policy was made for a base whose hidden state and embedding have {seen} numbers together, but those "
            f"of this base have {sizes}: pass the base that it was trained on."
        )
