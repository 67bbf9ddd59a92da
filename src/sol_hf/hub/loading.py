# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Loading a policy, and the adapter on it."""

import copy
import os
from collections.abc import Mapping
from typing import Any

from ..configuration_sol import SOLConfig
from ..modeling_sol_policy import SOLPolicyModel
from ..stored.json_files import read_json_object
from ..stored.source import PolicySource, find_policy


def load_policy(
    name_or_path: str | os.PathLike,
    config: SOLConfig | str | None,
    location: Mapping[str, Any],
    adapter: Mapping[str, Any] | None = None,
) -> tuple[SOLPolicyModel, dict[str, Any], PolicySource]:
    """Load the policy of a repository or folder.

    Args:
        name_or_path (`str` or `os.PathLike`): Repository id or folder, of a policy or of an adapter on one.
        config ([`SOLConfig`], *optional*): Instead of the stored one.
        location (`Mapping[str, Any]`): `revision`, `subfolder` and Hub arguments.
        adapter (`Mapping[str, Any]`, *optional*): What an Auto class has found, see [`find_policy`].

    Returns:
        The policy, transformers' info on its loading, and where it was found.

    Raises:
        ValueError: if a file is damaged, the weights do not fit the config, or it is not a policy.
    """
    source = find_policy(name_or_path, location, adapter)
    if config is None:
        config = _config_in(source)
    elif isinstance(config, str | os.PathLike):
        config = SOLConfig.from_pretrained(config)
    if not isinstance(config, SOLConfig):
        raise ValueError(f"`config` must be a SOLConfig, got {type(config).__name__}.")
    config = copy.deepcopy(config)
    config._attn_implementation = config._experts_implementation = None  # what Auto classes put there is for the base
    config.dtype = None  # the policy keeps the dtype of its weights, whatever the base is loaded in
    policy, info = SOLPolicyModel.from_pretrained(source, config=config, output_loading_info=True, require_heads=True)
    return policy.eval(), info, source


def stored_config(name_or_path: str | os.PathLike, location: Mapping[str, Any]) -> SOLConfig:
    """The config of a policy, or of the policy beneath an adapter.

    Args:
        name_or_path (`str` or `os.PathLike`): Repository id or folder, of a policy or of an adapter on one.
        location (`Mapping[str, Any]`): `revision`, `subfolder` and Hub arguments.
    """
    return _config_in(find_policy(name_or_path, location))


def _config_in(source: PolicySource) -> SOLConfig:
    return SOLConfig.from_dict(read_json_object(source.config), name_or_path=source.name_or_path)
