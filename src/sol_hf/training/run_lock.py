# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""One run per output folder.

The lock is of the operating system, which takes it back when the process ends, however it ends. Beside it, a small
file says who holds it. The processes of a distributed run are one run: the one that writes takes the lock.
"""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout


LOCK, HOLDER = "_run.lock", "_run.json"
PATIENCE = 15.0
"""Seconds to wait for a lock of a dead process. Its data loader workers, which have it too, end a little later."""


class RunInProgressError(RuntimeError):
    """Another run writes to the same folder; the message names its process."""


@contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """Hold the lock of an output folder.

    Args:
        folder (`Path`): The output folder of a run; made if it does not exist.

    Raises:
        RunInProgressError: if another run holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock, holder = FileLock(folder / LOCK), folder / HOLDER
    until = time.monotonic() + PATIENCE
    while True:
        try:
            lock.acquire(timeout=0)
            break
        except Timeout as error:
            who = _read(holder)
            if _lives(who) or time.monotonic() > until:
                raise RunInProgressError(_in_use(folder, who)) from error
            time.sleep(0.1)
    me = {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now().isoformat(timespec="seconds")}
    try:
        holder.write_text(json.dumps(me), encoding="utf-8")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _read(holder: Path) -> dict:
    try:
        return dict(json.loads(holder.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError):  # it is being written, or the disk is full
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
        f"Another run writes to {folder}: {name}. Two runs would overwrite each other's checkpoints. Wait until it "
        "ends, end it, or choose another `output_dir`."
    )
