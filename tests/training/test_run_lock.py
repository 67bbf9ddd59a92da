# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Two runs that are started with one output folder."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from transformers import TrainerCallback

from sol_hf.training import run_lock
from sol_hf.training.run_lock import HOLDER, RunInProgressError, only_run
from support.trainers import trainer_of


HOLD = """
import runpy, sys, time
from pathlib import Path
with runpy.run_path(sys.argv[2])["only_run"](Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
"""Without the package, whose import takes seconds."""
FORK = "    import os\n    if os.fork() == 0:\n        time.sleep(1.5)\n        os._exit(0)\n"


def hold(folder: Path, script: str = HOLD) -> subprocess.Popen:
    """Another process that holds the lock of a folder."""
    command = [sys.executable, "-c", script, str(folder), run_lock.__file__]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


@pytest.fixture
def other(tmp_path):
    process = hold(tmp_path)
    yield process
    process.kill()
    process.wait()


def test_the_second_run_is_told_who_the_first_is(tmp_path, other):
    before = sorted(tmp_path.iterdir())
    trainer = trainer_of(tmp_path)
    with pytest.raises(RunInProgressError, match=rf"process {other.pid} on .*another `output_dir`"):
        trainer.train()
    assert sorted(tmp_path.iterdir()) == before and trainer.state.global_step == 0


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path, other):
    other.kill()
    other.wait()
    assert (tmp_path / HOLDER).exists()
    with only_run(tmp_path):
        assert json.loads((tmp_path / HOLDER).read_text())["pid"] == os.getpid()
    assert not (tmp_path / HOLDER).exists()


def test_workers_of_a_killed_process_are_waited_for(tmp_path):
    """A child has the lock, too, and lives a little longer."""
    process = hold(tmp_path, HOLD.replace("    print", FORK + "    print"))
    process.kill()
    process.wait()
    begin = time.monotonic()
    with only_run(tmp_path):
        assert time.monotonic() - begin < 10


def test_two_trainers_in_one_process(tmp_path):
    second = trainer_of(tmp_path)

    class StartAnother(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            with pytest.raises(RunInProgressError, match=f"process {os.getpid()}"):
                second.train()

    first = trainer_of(tmp_path, max_steps=1)
    first.add_callback(StartAnother())
    first.train()
    second.train()
    assert second.state.global_step == 2
    assert not (tmp_path / HOLDER).exists()


def test_the_lock_is_given_back_after_an_error(tmp_path):
    with pytest.raises(ValueError, match="no complete checkpoint"):
        trainer_of(tmp_path).train(resume_from_checkpoint=True)
    with only_run(Path(tmp_path)):
        pass
