# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The benchmarks for GPUs run to their end on a CPU, at tiny sizes; the kernels compile for an H100."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch

from sol_hf.kernels.cuda import triton_support
from support.paths import EXAMPLES, SUPPORT


pytest.importorskip("triton")

on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled here, not interpreted")


def load(name: str, monkeypatch):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


@on_cpu
def test_attention(monkeypatch, tmp_path, capsys):
    benchmark, file = load("attention_cuda", monkeypatch), tmp_path / "numbers.json"
    sizes = "--contexts 64 --rows 1 --heads 2 --kv-heads 1 --head-dim 16 --dtype float32 --repeats 1"
    assert benchmark.main([*f"--interpret {sizes} --token-keep 0.25 1 --json".split(), str(file)]) == 0
    report = json.loads(file.read_text())
    assert len(capsys.readouterr().out.splitlines()) == 2 + 4
    index, key = 2 * 4 * 16 * 4, 2 * 16 * 4
    read = {(r["choice"], r["token_keep"]): r["bytes_read"] for r in report["results"]}
    assert read == {("head", 0.25): index + 2 * 16 * key, ("head", 1): 2 * 64 * key,
                    ("group", 0.25): index + 16 * key, ("group", 1): 64 * key}  # fmt: skip
    assert all(r["total_us"] > 0 and r["share"] == r["bound_us"] / r["total_us"] for r in report["results"])


@on_cpu
@pytest.mark.slow
def test_decode(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(triton_support, "DEVICES", triton_support.DEVICES)
    benchmark, file = load("decode_cuda", monkeypatch), tmp_path / "numbers.json"
    command = "--tiny --contexts 40 --episodes 1 --repeats 1 --budget 0.3 0.6 16 --json"
    assert benchmark.main([*command.split(), str(file)]) == 0
    results = json.loads(file.read_text())["results"]
    assert [r["variant"] for r in results] == [
        "budget, captured", "no refresh, captured", "(1, 1, 16), captured", "budget", "dense, SOLCache",
        "dense, DynamicCache", "budget, reference"
    ]  # fmt: skip
    assert results[-2]["dense/this"] == 1 and all(r["ms/step"] > 0 for r in results)
    assert "interpreter" in capsys.readouterr().out


@on_cpu
@pytest.mark.parametrize("name", ["attention_cuda", "decode_cuda"])
def test_without_a_gpu_they_say_so(name, monkeypatch, capsys):
    assert load(name, monkeypatch).main([]) == 2
    assert "no GPU here" in capsys.readouterr().err


@pytest.mark.slow
def test_kernels_compile_for_an_h100_without_spilling(tmp_path):
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, str(SUPPORT / "compile_kernels.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    kernels = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(kernels) == 25
    assert [kernel["kernel"] for kernel in kernels if kernel["spilled"]] == []
    assert {kernel["kernel"] for kernel in kernels if kernel["tensor_cores"]} == {
        "attend, head", "attend, group", "attend, refresh", "planes", "planes, 32 tokens",
        "score tokens, group", "score tokens, head"
    }  # fmt: skip
