# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Runs that are killed and resumed: of the training script in two processes, and again and again at drawn points."""

import json
import os
import re
import runpy
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

from sol_hf.training.checkpoint_record import CheckpointRecord
from support.paths import ROOT
from support.recipes import SETTINGS
from support.sudden_death import kill


LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "examples/accelerate/cpu.yaml"]
STEPS, STOP = 32, 4


def start(folder: Path, *options: str) -> subprocess.Popen:
    """The script on the YAML file in `folder`'s parent."""
    command = [*LAUNCH, "examples/train_grpo.py", "--config", str(folder.parent / "tiny.yaml")]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CI": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*command, "--output_dir", str(folder), *options], cwd=ROOT, env=environment)


def finish(run: subprocess.Popen) -> None:
    try:
        assert run.wait(timeout=200) == 0
    finally:
        kill(run)


def history(folder: Path) -> list[dict]:
    """The logs of every step, without measured times."""
    state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    steps = [entry for entry in state["log_history"] if "loss" in entry]
    return [{name: value for name, value in entry.items() if name != "step_time"} for entry in steps]


@pytest.fixture
def config(tmp_path) -> Path:
    """A YAML file for a tiny Llama, and the Llama."""
    example = runpy.run_path(str(ROOT / "examples" / "generate.py"))
    tokenizer = example["tiny_tokenizer"]()
    tokenizer.save_pretrained(tmp_path / "base")
    example["tiny_base"](tokenizer).save_pretrained(tmp_path / "base")
    settings = SETTINGS | dict(base=str(tmp_path / "base"), max_steps=STEPS, save_steps=STOP, save_total_limit=1)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path / "tiny.yaml"


@pytest.mark.slow
def test_a_killed_run_ends_as_an_uninterrupted_one(config, tmp_path):
    finish(start(tmp_path / "whole"))
    run = start(tmp_path / "killed")
    try:
        until = time.monotonic() + 120
        while not list((tmp_path / "killed").glob("checkpoint-*")):
            assert run.poll() is None and time.monotonic() < until
            time.sleep(0.005)
        workers = psutil.Process(run.pid).children(recursive=True)
        assert len([worker for worker in workers if "examples/train_grpo.py" in worker.cmdline()]) == 2
    finally:
        kill(run)
    assert not (tmp_path / "killed" / "trainer_state.json").exists(), "the run was over before it was killed"

    finish(start(tmp_path / "killed", "--resume"))
    assert [entry["step"] for entry in history(tmp_path / "whole")] == list(range(1, STEPS + 1))
    assert history(tmp_path / "killed") == history(tmp_path / "whole")
    whole, killed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert whole.keys() == killed.keys()
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    assert not (tmp_path / "killed" / ".unfinished").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "seed"), [("epochs", 1), ("stream", 2), ("adapter", 3), ("reference", 4)])
def test_a_run_that_is_killed_again_and_again_ends_as_an_uninterrupted_one(tmp_path, kind, seed):
    """At updates, and before and in the middle of what is done to files."""
    command = [sys.executable, "tests/support/train_until_killed.py", str(tmp_path), kind, str(seed)]
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CI": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    done = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, timeout=250)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    kills = int(re.search(r"killed (\d+) times", done.stdout).group(1))
    assert kills >= 3
    assert history(tmp_path / "killed") == history(tmp_path / "whole")
    files = sorted(path.name for path in (tmp_path / "whole").glob("*.safetensors"))
    assert files and files == sorted(path.name for path in (tmp_path / "killed").glob("*.safetensors"))
    for file in files:
        whole, killed = (load_file(tmp_path / name / file) for name in ("whole", "killed"))
        assert whole.keys() == killed.keys()
        assert all(torch.equal(whole[name], killed[name]) for name in whole)
    assert rest(tmp_path / "killed") == rest(tmp_path / "whole")
    for checkpoint in (tmp_path / "killed").glob("checkpoint-*"):
        CheckpointRecord.read(checkpoint).check_files(checkpoint)


def rest(folder: Path) -> list[str]:
    """What else is in the folder of a run. Killed while it removes an old checkpoint, a run may have one more."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("checkpoint-"))
