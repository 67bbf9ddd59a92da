# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Files are written beside those of a folder, and replace them when all of them are whole.

A process that is killed, or a disk that is full, leaves the folder as it was. Two processes that write to one folder
do so one after the other, where the system can lock a folder. What a killed process leaves is removed by the next one.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path

from safetensors import SafetensorError


try:
    import fcntl
except ModuleNotFoundError:  # Windows, which cannot lock a folder
    fcntl = None  # type: ignore[assignment]


UNFINISHED = ".unfinished-"
WEIGHTS = ("model*.safetensors", "model*.safetensors.index.json")
"""Files that would be loaded next to newer ones, if they were left: a policy may once have been written in shards."""


@contextmanager
def staged(folder: str | os.PathLike, keep: tuple[str, ...] = ()) -> Iterator[Path]:
    """A folder to write to; its files replace those of `folder` at the end of the block.

    Args:
        folder (`str` or `os.PathLike`): Is created if it does not exist.
        keep (`tuple[str, ...]`, *optional*): Names of files that are not replaced.

    Raises:
        OSError: if a file cannot be written; the message says that the folder is unchanged.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            for remains in folder.glob(f"{UNFINISHED}*"):
                shutil.rmtree(remains, ignore_errors=True)
            with tempfile.TemporaryDirectory(dir=folder, prefix=UNFINISHED, ignore_cleanup_errors=True) as stage:
                yield Path(stage)
                _replace(Path(stage), folder, keep)
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"Nothing was saved in {folder}, whose files are as before: {error}. Free space on the disk, or choose a "
            "folder that you may write to."
        ) from error


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # file systems without locks, such as some network drives
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _replace(stage: Path, folder: Path, keep: tuple[str, ...]) -> None:
    """Move the files, those with the weights first, then remove weights that are not among them."""
    files = [path for path in stage.rglob("*") if path.is_file()]
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    names = {str(path.relative_to(stage)) for path in files}
    for path in sorted(files, key=lambda path: not _is_weights(path.name)):
        target = folder / path.relative_to(stage)
        if not (target.name in keep and target.exists()):
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
    if any(_is_weights(name) for name in names):
        for path in folder.iterdir():
            if _is_weights(path.name) and path.name not in names:
                path.unlink()


def _is_weights(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in WEIGHTS)
