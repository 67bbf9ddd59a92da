# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Training in several processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from support.bases import tiny_base
from support.cases import control
from support.paths import PYTHON_PATH, SUPPORT


SCRIPT = SUPPORT / "train_tiny.py"
TIMES = ("eval_runtime", "eval_samples_per_second")


def train(folder: Path, processes: int, *options: str) -> dict[str, torch.Tensor]:
    """Weights after a run of the script in `processes` processes, on the loopback interface."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = {**os.environ, "PYTHONPATH": PYTHON_PATH, "HF_HUB_OFFLINE": "1", "CI": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([*launcher, str(SCRIPT), str(folder), *options], check=True, env=environment, timeout=240)
    return load_file(folder / "model.safetensors")


def losses(folder: Path) -> list[float]:
    state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


def figures(folder: Path, name: str) -> list[float]:
    state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    return [entry[name] for entry in state["log_history"] if name in entry]


def assert_same_training(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    """Asserts that every weight ends at the same place, measured by how far it moved.

    Sums of another order differ by a rounding error, which Adam makes larger where gradients are almost 0.
    """
    start = control(tiny_base("llama")).policy.float().state_dict()
    assert one.keys() == two.keys() == start.keys()
    for name in one:
        assert (one[name] - two[name]).norm() <= 1e-3 * (one[name] - start[name]).norm(), name
    assert any((one[name] != start[name]).any() for name in one)


@pytest.mark.slow
def test_two_processes_make_the_update_of_one_with_twice_the_batch(tmp_path):
    one, two = train(tmp_path / "one", 1), train(tmp_path / "two", 2)
    assert_same_training(one, two)


@pytest.mark.slow
def test_two_processes_train_under_the_constraint_as_one_with_twice_the_batch(tmp_path):
    one, two = train(tmp_path / "one", 1, "--constraint"), train(tmp_path / "two", 2, "--constraint")
    assert_same_training(one, two)
    values = [load_file(tmp_path / number / "multipliers.safetensors")["values"] for number in ("one", "two")]
    assert torch.equal(*values) and bool(values[0].any())
    cosines = [figures(tmp_path / number, "sol/gradient_cosine") for number in ("one", "two")]
    assert cosines[0] and cosines[1] == pytest.approx(cosines[0], abs=1e-4)


@pytest.mark.slow
def test_a_sharded_base_trains_the_same_policy(tmp_path):
    whole, sharded = train(tmp_path / "whole", 2), train(tmp_path / "sharded", 2, "--shard")
    assert len(losses(tmp_path / "whole")) == 4
    assert losses(tmp_path / "sharded") == losses(tmp_path / "whole")
    assert all(torch.equal(whole[name], sharded[name]) for name in whole)


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--shard",)], ids=["whole base", "sharded base"])
def test_two_processes_evaluate_as_one_and_both_load_the_best_policy(tmp_path, options):
    histories = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        train(folder, processes, "--evaluate", *(options if processes == 2 else ()))
        state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
        assert state["best_model_checkpoint"].startswith(str(folder / "checkpoint-"))
        found = [entry for entry in state["log_history"] if "eval_gain" in entry]
        assert [entry["step"] for entry in found] == [0, 1, 2, 3, 4]
        assert state["best_metric"] == max(entry["eval_gain"] for entry in found[1:])
        histories.append(found)
    one, two = ({name: x for name, x in found[0].items() if name not in TIMES} for found in histories)
    assert one == two
