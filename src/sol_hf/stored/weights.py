# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Weights of a policy: safetensors only, compared with the config by their headers before any of them is read."""

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from .fields import shown
from .files import find_file
from .json_files import read_json_object


WEIGHTS, ADAPTER_WEIGHTS = "model.safetensors", "adapter_model.safetensors"
MOST_SHARDS = 1_000
_FLOATS = ("F64", "F32", "F16", "BF16")


def find_weights(
    name_or_path: str | os.PathLike, location: Mapping[str, Any], variant: str | None = None
) -> list[Path]:
    """The safetensors files of a policy: one, or the shards that an index names.

    Raises:
        FileNotFoundError: if there are none.
        ValueError: if the index is damaged.
    """
    folder = Path(name_or_path, location.get("subfolder") or "")
    if next(folder.glob("shard-*.safetensors"), None) is not None:
        raise ValueError(
            f"{folder} has files of a distributed checkpoint (shard-*.safetensors), which would be read instead of "
            "the policy's: remove them."
        )
    suffix = f".{variant}" if variant else ""
    filename = WEIGHTS.replace(".safetensors", f"{suffix}.safetensors")
    whole = find_file(name_or_path, filename, location)
    if whole is not None:
        return [whole]
    index = find_file(name_or_path, f"{WEIGHTS}.index{suffix}.json", location)
    if index is None:
        raise FileNotFoundError(
            f"{name_or_path} has no {filename}. The weights of a policy are read from safetensors files only, never "
            "from pickled ones such as pytorch_model.bin."
        )
    shards = read_json_object(index).get("weight_map")
    if not isinstance(shards, dict) or not all(map(_is_plain_name, shards.values())):
        raise ValueError(f"{index} must name safetensors files in its own folder, got {shown(shards)}.")
    names = sorted(set(shards.values()))
    if len(names) > MOST_SHARDS:
        raise ValueError(f"{index} names {len(names):,} files; at most {MOST_SHARDS:,} are read.")
    paths = [(name, find_file(name_or_path, name, location)) for name in names]
    missing = [name for name, path in paths if path is None]
    if missing:
        raise ValueError(f"{index} names files that {name_or_path} lacks: {', '.join(missing[:5])}.")
    return [path for _, path in paths if path is not None]


def _is_plain_name(name: object) -> bool:
    return isinstance(name, str) and name.endswith(".safetensors") and not set(name) & set("/\\:")


def check_download(path: Path) -> None:
    """Raise a ValueError if a file in the Hub's cache is not what the Hub has: large files are named by their hash."""
    blob = path.resolve()
    if blob.parent.name != "blobs" or not re.fullmatch("[0-9a-f]{64}", blob.name):
        return
    with blob.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != blob.name:
        raise ValueError(
            f"The policy weights in {path} are not those on the Hub: they were damaged on the way or on the disk. "
            "Fetch them again with `force_download=True`."
        )


def read_header(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of every tensor of a safetensors file; none of them is read.

    Raises:
        ValueError: if the file is damaged.
    """
    check_download(path)
    try:
        with safe_open(path, framework="pt") as tensors:
            parts = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
            return {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in parts.items()}
    except SafetensorError as error:
        raise ValueError(
            f"The policy weights in {path} are truncated or corrupt ({error}): fetch them again."
        ) from error


def check_headers(
    files: list[Path],
    wanted: Mapping[str, tuple[int, ...]],
    name_or_path: str | os.PathLike,
    may_lack: tuple[str, ...] = (),
) -> None:
    """Raise a ValueError if the tensors of these files are not those that a config asks for; none of them is read.

    Args:
        files (`list[Path]`): Safetensors files.
        wanted (`Mapping[str, tuple]`): Shapes by name.
        name_or_path (`str` or `os.PathLike`): Where they are from, for the message.
        may_lack (`tuple[str, ...]`, *optional*): Beginnings of the names that may be missing.
    """
    headers = {name: entry for path in files for name, entry in read_header(path).items()}
    found = {name: shape for name, (shape, _) in headers.items()}
    problems = [
        f"{name} has dtype {dtype}, not one of {', '.join(_FLOATS)}"
        for name, (_, dtype) in headers.items()
        if dtype not in _FLOATS
    ]
    problems += [f"missing {name}" for name in wanted if name not in found and not name.startswith(may_lack)]
    problems += [f"unexpected {name}" for name in found if name not in wanted]
    problems += [
        f"{name} has shape {found[name]}, the config asks for {shape}"
        for name, shape in wanted.items()
        if name in found and found[name] != shape
    ]
    if problems:
        raise ValueError(f"The policy weights in {name_or_path} do not fit their config: {_some(problems)}.")


def check_finite(module: nn.Module, name_or_path: str | os.PathLike) -> None:
    """Raise a ValueError if a parameter has a value that is not a finite number."""
    wrong = [
        name
        for name, parameter in module.named_parameters()
        if not parameter.is_meta and not bool(torch.isfinite(parameter).all())
    ]
    if wrong:
        raise ValueError(
            f"The policy weights in {name_or_path} are damaged: {_some(wrong)} {'has' if len(wrong) == 1 else 'have'} "
            "values that are NaN or infinite. With them the policy could not choose: fetch or train it again."
        )


def _some(parts: list[str], most: int = 8) -> str:
    more = [f"and {len(parts) - most} more"] if len(parts) > most else []
    return "; ".join(parts[:most] + more)
