# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Files are written beside those of a folder, and replace them when all of them are whole.

A process that is killed while it writes, or a disk that is full, leaves the folder as it was. Two processes that write
to one folder do so one after the other, where the system can lock a folder. What a killed process leaves is removed by
the next one.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path

from safetensors import SafetensorError


try:
    import fcntl
except ModuleNotFoundError:  # Windows, which cannot lock a folder
    fcntl = None  # type: ignore[assignment]


UNFINISHED = ".unfinished-"
_OF_THE_DISK = frozenset(
    getattr(errno, name) for name in "ENOSPC EDQUOT EFBIG EROFS EIO".split() if hasattr(errno, name)
)


@contextmanager
def staged(folder: str | os.PathLike, owned: tuple[str, ...] = (), keep: tuple[str, ...] = ()) -> Iterator[Path]:
    """A folder to write to; its files replace those of `folder` at the end of the block.

    Args:
        folder (`str` or `os.PathLike`): Is created if it does not exist.
        owned (`tuple[str, ...]`, *optional*): Patterns of names, see [`owned_files`]. Files of `folder` with such a
            name that the block did not write are removed.
        keep (`tuple[str, ...]`, *optional*): Names of files that are not replaced.

    Raises:
        OSError: if a file cannot be written; the message says whether the folder is unchanged. Errors of the block
            that are not of the disk are raised as they are.
    """
    folder = Path(folder)
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_locked(folder))
            for remains in folder.glob(f"{UNFINISHED}*"):
                shutil.rmtree(remains, ignore_errors=True)
            temporary = tempfile.TemporaryDirectory(dir=folder, prefix=UNFINISHED, ignore_cleanup_errors=True)
            stage = Path(stack.enter_context(temporary))
        except OSError as error:
            raise _nothing_saved(folder, error) from error
        try:
            yield stage
            for path in _files_in(stage):
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        except (OSError, SafetensorError) as error:
            if not _is_of_the_disk(error):
                raise
            raise _nothing_saved(folder, error) from error
        _replace(stage, folder, owned, keep)


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


def _nothing_saved(folder: Path, error: Exception) -> OSError:
    return OSError(
        f"Nothing was saved in {folder}, whose files are as before: {error}. Free space on the disk, or choose a "
        "folder that you may write to."
    )


def _is_of_the_disk(error: OSError | SafetensorError) -> bool:
    """Whether a file could not be written; safetensors has no errors of its own for that."""
    return error.errno in _OF_THE_DISK if isinstance(error, OSError) else "I/O error" in str(error)


def _replace(stage: Path, folder: Path, owned: tuple[str, ...], keep: tuple[str, ...]) -> None:
    """Move the files, those with the weights first, and remove what the folder owns and the stage does not have.

    Old weights beside which there are no new ones are removed before all else. So a process that is killed here
    leaves no adapter on a policy that it is not for: such a folder is refused.
    """
    files = sorted(_files_in(stage), key=lambda path: not _is_weights(path.name))
    names = {str(path.relative_to(stage)) for path in files}
    kinds = {_is_of_an_adapter(name) for name in names if _is_weights(name)}
    outdated = [
        path for path in _files_at(folder) if path.name not in names and any(fnmatchcase(path.name, o) for o in owned)
    ]
    first = [path for path in outdated if _is_weights(path.name) and _is_of_an_adapter(path.name) not in kinds]
    is_changed = False
    try:
        for path in first:
            path.unlink()
            is_changed = True
        for path in files:
            target = folder / path.relative_to(stage)
            if target.name in keep and target.exists():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
            is_changed = True
        for path in outdated:
            path.unlink(missing_ok=True)
    except OSError as error:
        if not is_changed:
            raise _nothing_saved(folder, error) from error
        raise OSError(
            f"Some files in {folder} are new and others are not: {error}. Do not use the folder as it is. Mend this "
            "and save again, or save to another folder."
        ) from error


def _files_in(stage: Path) -> list[Path]:
    return [path for path in stage.rglob("*") if path.is_file()]


def _files_at(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file()]


def _is_weights(name: str) -> bool:
    return name.endswith(".safetensors")


def _is_of_an_adapter(name: str) -> bool:
    return name.startswith("adapter_")
