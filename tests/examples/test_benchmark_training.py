# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The training benchmark on a tiny random model: its output, and that it cleans up."""

import importlib.util
import json
import sys

import pytest
import torch

from sol_hf.episodes.rollouts import prefill, roll_out
from sol_hf.training import grpo_trainer
from support.bases import tiny_base
from support.paths import EXAMPLES


SCRIPT = EXAMPLES / "benchmarks" / "training.py"
SIZES = "--blocks 2 --rollouts 3 --steps 4"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("benchmark_training", SCRIPT)
    module = sys.modules["benchmark_training"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["benchmark_training"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("base")
    tiny_base("llama").save_pretrained(folder)
    return str(folder)


def test_table_and_json(benchmark, folder, tmp_path, capsys):
    file = tmp_path / "numbers.json"
    command = f"--model {folder} --contexts 20 24 {SIZES} --repeats 2 --json {file} --no-peak"
    assert benchmark.main(command.split()) == 0
    assert (grpo_trainer.prefill, grpo_trainer.roll_out) == (prefill, roll_out)

    machine, note, head, *lines = capsys.readouterr().out.splitlines()
    assert "dtype float32" in machine and note == benchmark.NOTE
    assert head.split() == "context part seconds ratio actions/s peak MB".split()
    cases = [(int(line[:7]), line[7:19].strip()) for line in lines]
    assert cases == [(context, part) for context in (20, 24) for part in benchmark.PARTS]

    report = json.loads(file.read_text())
    assert (report["blocks"], report["rollouts"], report["steps"]) == (2, 3, 4)
    for first in (0, 6):
        parts = {result["part"]: result for result in report["results"][first : first + 6]}
        assert all(len(result["rounds"]) == 2 and min(result["rounds"]) > 0 for result in parts.values())
        assert parts["dense"]["ratio"] == 1
        whole = [
            sum(spent) for spent in zip(*(parts[p]["rounds"] for p in ("prefill", "rollouts", "rest")), strict=True)
        ]
        assert whole == pytest.approx(parts["batch"]["rounds"])
        speed = parts["batch"]["actions_per_second"]
        assert speed == pytest.approx(2 * 3 * 4 / parts["batch"]["seconds"])
        assert parts["batch"]["peak_mb"] is None


@pytest.mark.parametrize("part", ["dense", "batch"])
def test_peak_of_a_process(benchmark, folder, part, capsys):
    command = f"--model {folder} --contexts 20 {SIZES} --measure-peak {part}"
    assert benchmark.main(command.split()) == 0
    assert float(capsys.readouterr().out.splitlines()[-1]) > 50


@pytest.mark.slow
def test_peaks_come_from_processes_of_their_own(benchmark, folder, capsys):
    assert benchmark.main(f"--model {folder} --contexts 20 {SIZES} --repeats 1".split()) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[3:]]
    assert [line[1] for line in lines if len(line) == 6 and line[2] != "prefill"] == ["dense", "batch"]


def test_the_yardstick_scores_every_step_on_a_repeated_cache(benchmark):
    base, seen = tiny_base("llama"), []
    base.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((args[0].shape, kwargs["past_key_values"].get_seq_length())),
        with_kwargs=True,
    )
    options = benchmark.parse_options(SIZES.split())
    assert benchmark.dense_seconds(base, torch.ones(2, 25, dtype=torch.long), options) > 0
    assert seen == [((2, 20), 0), *(((6, 1), 20 + step) for step in range(4))]


@pytest.mark.parametrize("option", ["--contexts 0", "--blocks 0", "--rollouts 1", "--steps 0", "--repeats 0"])
def test_sizes_must_be_positive(benchmark, option, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(option.split())
    assert "at least 1, rollouts at least 2" in capsys.readouterr().err
