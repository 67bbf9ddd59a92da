# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""One process at a time in a folder of results.

The lock is of the operating system, so it ends with its process, however that ends. The processes of one `accelerate
launch` count as one: the main process takes the lock.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


LOCK = ".lock"


class FolderInUseError(ValueError):
    """Another process works in the same folder."""


@contextmanager
def folder_lock(folder: Path, patience: float = 0.0) -> Iterator[None]:
    """Hold the lock of a folder, which is made if it does not exist.

    Args:
        folder (`Path`): The folder.
        patience (`float`, *optional*, defaults to 0): Seconds to wait for another process.

    Raises:
        FolderInUseError: if another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=patience)
    except Timeout as error:
        raise FolderInUseError(
            f"Another process is at work in {folder}: wait until it ends, end it, or choose another folder."
        ) from error
    try:
        yield
    finally:
        lock.release()
