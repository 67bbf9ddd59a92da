# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""One process at a time in a folder of results.

The lock is of the operating system, which takes it back when the process ends, however it ends. Beside it, a small
file says who holds it. The processes of one `accelerate launch` count as one: the main process takes the lock.
"""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout


LOCK, HOLDER = "_run.lock", "_run.json"
"""Names that transformers does not upload with a checkpoint."""
AFTER_DEATH = 15.0
"""Seconds to wait for a lock of a dead process. Its data loader workers, which have it too, end a little later."""


class FolderInUseError(ValueError):
    """Another run works in the same folder; the message names its process."""


@contextmanager
def folder_lock(folder: Path, patience: float = 0.0) -> Iterator[None]:
    """Hold the lock of a folder, which is made if it does not exist.

    Args:
        folder (`Path`): The folder.
        patience (`float`, *optional*, defaults to 0): Seconds to wait for a living process.

    Raises:
        FolderInUseError: if another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock, holder = FileLock(folder / LOCK), folder / HOLDER
    begin = time.monotonic()
    while True:
        try:
            lock.acquire(timeout=0)
            break
        except Timeout as error:
            who = _read(holder)
            if time.monotonic() - begin > (patience if _lives(who) else max(patience, AFTER_DEATH)):
                raise FolderInUseError(_in_use(folder, who)) from error
            time.sleep(0.05)
    with ExitStack() as stack:
        stack.callback(lock.release)
        stack.callback(holder.unlink, missing_ok=True)
        me = {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now().isoformat(timespec="seconds")}
        holder.write_text(json.dumps(me), encoding="utf-8")
        yield


def _read(holder: Path) -> dict:
    try:
        return dict(json.loads(holder.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError):  # it is being written
        return {}


def _lives(who: dict) -> bool:
    """Whether the holder may run: unknown ones and those of other machines may."""
    if not who or who.get("host") != socket.gethostname():
        return bool(who)
    if os.name != "posix":
        return True
    try:
        os.kill(int(who["pid"]), 0)  # signal 0 only asks whether the process exists
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _in_use(folder: Path, who: dict) -> str:
    name = f"process {who['pid']} on {who['host']}, since {who['since']}" if who else "another process"
    return (
        f"Another run is at work in {folder}: {name}. Two would overwrite each other's files. Wait until it ends, end "
        "it, or choose another folder."
    )
