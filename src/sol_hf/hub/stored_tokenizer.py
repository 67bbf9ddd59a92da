# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The tokenizer in a policy's repository: one that was given, the base's, or a note where to take it from."""

import json
import os
from pathlib import Path

from huggingface_hub import file_exists
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging

from ..configuration_sol import SOLConfig
from ..stored.hub_names import hub_id
from .base_license import base_license


logger = logging.get_logger(__name__)

TOKENIZER_CONFIG = "tokenizer_config.json"
FROM_THE_BASE = {"auto_map": {"AutoTokenizer": [None, "sol_remote.SOLTokenizer"]}}
"""In a repository without a tokenizer: the class that loads the base's."""
ALLOWS_COPIES = frozenset("apache-2.0 mit bsd bsd-2-clause bsd-3-clause isc zlib cc0-1.0 unlicense".split())
"""Licences, by their names on the Hub, under which anybody may store a copy of the base's tokenizer."""


def tokenizer_to_store(config: SOLConfig) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a base on the Hub, with its chat template, if the licence of the base allows to store a copy.

    Args:
        config ([`SOLConfig`]): Names the base.

    Returns:
        `PreTrainedTokenizerBase` or `None`: `None` for a base that is not on the Hub, has no tokenizer there or one
        that needs code, or whose card does not state such a licence.

    Raises:
        OSError: if the Hub cannot be reached.
    """
    base, revision = hub_id(config.base_model_name_or_path), config.base_model_revision
    if base is None or base_license(base, revision, ask_hub=True).get("license") not in ALLOWS_COPIES:
        return None
    if not file_exists(base, TOKENIZER_CONFIG, revision=revision):
        return None
    try:
        return AutoTokenizer.from_pretrained(base, revision=revision or "main", trust_remote_code=False)
    except ValueError as error:
        logger.warning(f"The tokenizer of {base} is not stored with the policy, since it cannot be loaded: {error}")
        return None


def store_tokenizer(tokenizer: PreTrainedTokenizerBase | None, folder: str | os.PathLike) -> None:
    """Write a tokenizer, or if there is none, a note by which `AutoTokenizer` takes that of the base."""
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
        return
    text = json.dumps(FROM_THE_BASE, indent=2) + "\n"
    Path(folder, TOKENIZER_CONFIG).write_text(text, encoding="utf-8")
