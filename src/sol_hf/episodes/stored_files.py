# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Files of results that are complete or absent, and readers whose errors name the file.

A file is written under another name, brought to the disk, and then renamed. A process that is killed leaves at most a
file `*.partial`. Files of tensors have a checksum, so that a damaged one is noticed even if it can be read.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file


PARTIAL = ".partial"
CHECKSUM = "sha256"


class DamagedFileError(ValueError):
    """A file that was cut off or changed, or that holds something else than it should. The message names it."""


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file such that it is complete or absent; its folder is made if it does not exist.

    Args:
        path (`Path`): The file.
        write (`Callable`): Writes to the path that it is given.

    Raises:
        OSError: if the file cannot be written; the message names it.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        raise OSError(f"{path} cannot be written: {error}.") from error
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, atomically."""
    text = json.dumps(value, indent=1)
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def read_json(path: Path, way_out: str) -> dict[str, Any]:
    """The dictionary in a JSON file.

    Args:
        path (`Path`): The file.
        way_out (`str`): What to do if it is damaged, for the message.

    Raises:
        DamagedFileError: if the file has no dictionary.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"{path} is damaged ({error}): {way_out}.") from error
    if not isinstance(value, dict):
        raise DamagedFileError(f"{path} is damaged (it holds a {type(value).__name__}): {way_out}.")
    return value


def store_tensors(path: Path, tensors: Mapping[str, torch.Tensor], notes: Mapping[str, str] | None = None) -> None:
    """Write tensors with a checksum, atomically.

    Args:
        path (`Path`): The file, in the format of safetensors.
        tensors (`Mapping[str, torch.Tensor]`): The tensors.
        notes (`Mapping[str, str]`, *optional*): Texts to keep with them.
    """
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    kept = {**(notes or {}), CHECKSUM: _checksum(whole)}
    write_atomically(path, lambda partial: save_file(whole, partial, metadata=kept))


def load_tensors(path: Path, way_out: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors of a file, and the notes that were kept with them.

    Args:
        path (`Path`): The file.
        way_out (`str`): What to do if it is damaged, for the message.

    Raises:
        DamagedFileError: if the file cannot be read, or the checksum is another. Files without one are not checked.
    """
    try:
        with safe_open(path, framework="pt") as file:
            notes = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in list(file.keys())}
    except (SafetensorError, ValueError) as error:
        raise DamagedFileError(f"{path} is damaged ({error}): {way_out}.") from error
    if notes.pop(CHECKSUM, found := _checksum(tensors)) != found:
        raise DamagedFileError(f"{path} is damaged (its checksum is another): {way_out}.")
    return tensors, notes


def _checksum(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
