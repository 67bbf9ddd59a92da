# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A run of the training script in two processes that is killed and resumed."""

import json
import os
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
