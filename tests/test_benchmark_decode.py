# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The decode benchmark on a tiny random model: what it prints and writes, and that it leaves nothing behind."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from bases import tiny_base
from sol_hf import SOLForCausalLM, decoding


SCRIPT = Path(__file__).parents[1] / "examples" / "benchmark_decode.py"
VARIANTS = ["dense", "SOL, budget 1", "SOL, dense schedule", "SOL (0.5, 0.7, 8)", "SOL (0.2, 0.5, 6)"]


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("benchmark_decode", SCRIPT)
    module = sys.modules["benchmark_decode"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["benchmark_decode"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("base")
    tiny_base("llama").save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("controller", ["policy", "fixed"])
def test_table_and_json(benchmark, folder, tmp_path, capsys, controller):
    original, file = decoding.refresh, tmp_path / "numbers.json"
    command = f"--model {folder} --contexts 20 24 --batch-sizes 1 2 --new-tokens 18 --repeats 2 --json {file}"
    assert benchmark.main([*command.split(), "--controller", controller]) == 0
    assert decoding.refresh is original

    printed = capsys.readouterr().out
    assert "dtype float32" in printed.splitlines()[0] and benchmark.NOTE in printed
    assert all(printed.count(f"│ {name} ") == 4 for name in VARIANTS)

    report = json.loads(file.read_text())
    results = report["results"]
    assert [r["variant"] for r in results] == VARIANTS * 4
    cases = [(r["context"], r["rows"]) for r in results[:: len(VARIANTS)]]
    assert cases == [(20, 1), (20, 2), (24, 1), (24, 2)]
    for result in results:
        name = result["variant"]
        assert len(result["rounds"]) == 2 and min(result["rounds"]) > 0
        assert result["ratio"] == 1 or name != "dense"
        assert (result["policy"] > 0) == name.startswith(("SOL (", "SOL, dense")), name
        assert (result["refresh"] > 0) == name.startswith("SOL ("), name  # only sparse steps are refreshed
        assert result["policy"] + result["refresh"] + result["rest"] == pytest.approx(1)


def test_plain_table_without_rich(benchmark, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    benchmark.show([benchmark.Result(1024, 8, VARIANTS[3], 12.5, 1.25, 0.125, 0.25, 0.625, [12.5])])
    head, line = capsys.readouterr().out.splitlines()
    assert head.split() == list(benchmark.COLUMNS)
    assert line.split()[-5:] == ["12.50", "1.250", "12.5%", "25.0%", "62.5%"]


def test_stopwatch_counts_only_what_follows_the_first_new_token(benchmark):
    watch = benchmark.Stopwatch()
    watch.times = [0.0, 10.0, 11.0, 14.0]
    watch.spans = [("policy", 9.0, 9.5), ("policy", 10.5, 11.5), ("refresh", 12.0, 12.5)]
    assert watch.ms_per_token == 2000
    assert watch.share("policy") == 0.25 and watch.share("refresh") == 0.125


def test_every_variant_runs_all_its_steps(benchmark):
    base = tiny_base("llama", eos_token_id=5)
    base.generation_config.eos_token_id = list(range(1, 99))  # nearly every token would end the text
    model = SOLForCausalLM.from_base(base)
    for generate in benchmark.make_variants(model, "policy", 4).values():
        watch = benchmark.measure(generate, torch.ones(2, 20, dtype=torch.long), 3)
        assert len(watch.times) == 1 + 4


@pytest.mark.parametrize("option", ["--contexts 0", "--batch-sizes 0", "--new-tokens 0", "--repeats 0"])
def test_sizes_must_be_positive(benchmark, option, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(option.split())
    assert "at least 1" in capsys.readouterr().err


def test_context_must_fit_the_model(benchmark, folder, capsys):
    assert benchmark.main(["--model", folder, "--contexts", "250", "--new-tokens", "8"]) == 2
    assert "256 positions" in capsys.readouterr().err
