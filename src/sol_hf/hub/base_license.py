# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The licence of a base, as its own model card states it. Nothing is claimed that no card says."""

import os
from pathlib import Path

import yaml
from huggingface_hub import ModelCard, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled


FIELDS = ("license", "license_name", "license_link")


def base_license(base: str | None, revision: str | None = None, ask_hub: bool = False) -> dict[str, str]:
    """The fields `license`, `license_name` and `license_link` of the base's model card, those that it has.

    Args:
        base (`str`, *optional*): Folder or Hub id of the base.
        revision (`str`, *optional*): Branch, tag or commit.
        ask_hub (`bool`, *optional*, defaults to `False`): Whether to download the card if it is not in the cache.
    """
    card = None if base is None else _card_of(base, revision, ask_hub)
    if card is None:
        return {}
    try:
        data = ModelCard.load(card, ignore_metadata_errors=True).data.to_dict()
    except (ValueError, yaml.YAMLError):  # a card whose metadata are no YAML says nothing about a licence
        return {}
    found = {name: data[name] for name in FIELDS if isinstance(data.get(name), str)}
    return found if "license" in found else {}


def _card_of(base: str, revision: str | None, ask_hub: bool) -> Path | None:
    if os.path.isdir(base):
        card = Path(base, "README.md")
        return card if card.is_file() else None
    try:
        cached = try_to_load_from_cache(base, "README.md", revision=revision or "main")
        if isinstance(cached, str):
            return Path(cached)
        return Path(hf_hub_download(base, "README.md", revision=revision)) if ask_hub else None
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, HFValidationError, OSError):
        return None
