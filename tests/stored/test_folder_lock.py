# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Two runs that are started in one folder."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sol_hf.stored import folder_lock as locks
from sol_hf.stored.folder_lock import HOLDER, FolderInUseError, folder_lock


HOLD = """
import runpy, sys, time
from pathlib import Path
with runpy.run_path(sys.argv[2])["folder_lock"](Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
"""Without the package, whose import takes seconds."""
FORK = "    import os\n    if os.fork() == 0:\n        time.sleep(1.5)\n        os._exit(0)\n"


def hold(folder: Path, script: str = HOLD) -> subprocess.Popen:
    """Another process that holds the lock of a folder."""
    command = [sys.executable, "-c", script, str(folder), locks.__file__]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


@pytest.fixture
def other(tmp_path):
    process = hold(tmp_path)
    yield process
    process.kill()
    process.wait()


def test_the_second_one_is_told_who_the_first_is(tmp_path, other):
    before, begin = sorted(tmp_path.iterdir()), time.monotonic()
    with pytest.raises(FolderInUseError, match=rf"process {other.pid} on .*another folder"), folder_lock(tmp_path):
        pass
    assert sorted(tmp_path.iterdir()) == before and time.monotonic() - begin < 5


def test_a_living_process_is_waited_for_as_long_as_asked(tmp_path):
    process = hold(tmp_path, HOLD.replace("60", "0.5"))
    with folder_lock(tmp_path, patience=20):
        assert json.loads((tmp_path / HOLDER).read_text())["pid"] == os.getpid()
    assert process.wait() == 0


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path, other):
    other.kill()
    other.wait()
    assert (tmp_path / HOLDER).exists()
    with folder_lock(tmp_path):
        assert json.loads((tmp_path / HOLDER).read_text())["pid"] == os.getpid()
    assert not (tmp_path / HOLDER).exists()


def test_workers_of_a_killed_process_are_waited_for(tmp_path):
    """A child has the lock, too, and lives a little longer."""
    process = hold(tmp_path, HOLD.replace("    print", FORK + "    print"))
    process.kill()
    process.wait()
    begin = time.monotonic()
    with folder_lock(tmp_path):
        assert time.monotonic() - begin < 10
