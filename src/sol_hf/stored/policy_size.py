# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""How large a policy may be, by the fields of its config, before anything is allocated."""

from typing import Any

from .fields import MOST_PARAMETERS


def check_policy_size(config: Any, actions: int) -> None:
    """Raise a ValueError if a policy would have too many parameters.

    Args:
        config ([`SOLConfig`]): Its sizes.
        actions (`int`): Actions of its action space.
    """
    size, observed = config.policy_hidden_size, (config.base_hidden_size or 0) + (config.base_embedding_size or 0)
    parameters = (
        (actions + 1) * config.action_embedding_size
        + (observed + config.action_embedding_size) * size
        + config.policy_num_layers * int(size * size * (4 + 2 * config.policy_mlp_ratio))
        + (actions + config.episode_length + config.page_size) * size
    )
    if parameters > MOST_PARAMETERS:
        raise ValueError(
            f"The policy would have about {parameters:,} parameters, but at most {MOST_PARAMETERS:,} are allowed: "
            "choose smaller values of `policy_hidden_size`, `policy_num_layers`, `policy_mlp_ratio`, "
            "`action_embedding_size` or `episode_length`, or fewer levels."
        )
