# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The files of a folder or repository that say which policy it holds.

A save owns them: those that it does not write are of what was there before, and would be loaded with the new ones.

    config.json, model.safetensors                     a policy, whole or in shards
    adapter_config.json, adapter_model.safetensors     an adapter on it, or on the policy that it names
"""

from ..stored.source import ADAPTER_CONFIG, CONFIG
from ..stored.weights import ADAPTER_WEIGHTS, WEIGHTS


def owned_files(variant: str | None = None) -> tuple[str, ...]:
    """Patterns of the names of the files that a save owns.

    Args:
        variant (`str`, *optional*): Of the weights, as `PreTrainedModel.save_pretrained` takes it. Weights of other
            variants are not owned.
    """
    stem = WEIGHTS.removesuffix(".safetensors") + (f".{variant}" if variant else "")
    index = f"{WEIGHTS}.index.{variant}.json" if variant else f"{WEIGHTS}.index.json"
    weights = (f"{stem}.safetensors", f"{stem}-?????-of-?????.safetensors", index)
    return (CONFIG, ADAPTER_CONFIG, ADAPTER_WEIGHTS, *weights)
