# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The MLP benchmark on a tiny MLP: its output, and that its variants agree."""

import importlib.util
import json
import sys

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP

from sol_hf.selection.channels import keep_top_channels
from support.paths import EXAMPLES


SCRIPT = EXAMPLES / "benchmarks" / "mlp.py"


@pytest.fixture
def benchmark(monkeypatch):
    spec = importlib.util.spec_from_file_location("benchmark_mlp", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "benchmark_mlp", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "BYTES_OF_WEIGHTS", 1 << 17)
    return module


def test_table_and_json(benchmark, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "copy_bandwidth", lambda: 9.0)
    file = tmp_path / "numbers.json"
    assert benchmark.main(["--tiny", "--rows", "1", "2", "--repeats", "1", "--json", str(file)]) == 0
    report = json.loads(file.read_text())
    assert report["machine"]["copy GB/s"] == 9.0
    results = report["results"]
    assert len(results) == 2 * 2 * (2 + 3 * 5)
    assert {result["ratio"] for result in results if result["variant"] == "dense"} == {1.0}
    assert all(result["ms"] > 0 and result["gigabytes_per_second"] > 0 for result in results)
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(results)


def test_variants_agree_and_count_what_they_read(benchmark):
    mlps = [LlamaMLP(LlamaConfig(hidden_size=64, intermediate_size=128)).eval()]
    x = torch.randn(1, 1, 64)
    with torch.no_grad():
        variants = benchmark.make_variants(mlps, x, (0.5,))
        outputs = {variant.name: variant.run(0) for variant in variants}
    assert list(outputs) == ["dense", "reference", "masked", "fast", "neurons", "both", "int8"]
    assert torch.equal(outputs["masked"], outputs["reference"])
    torch.testing.assert_close(outputs["fast"], outputs["reference"], atol=1e-5, rtol=1e-4)
    keep = torch.tensor([0.5])
    hidden = keep_top_channels(benchmark.hidden_of(mlps[0], x), keep)
    torch.testing.assert_close(outputs["neurons"], mlps[0].down_proj(hidden), atol=1e-5, rtol=1e-4)
    hidden = keep_top_channels(benchmark.hidden_of(mlps[0], keep_top_channels(x, keep)), keep)
    torch.testing.assert_close(outputs["both"], mlps[0].down_proj(hidden), atol=1e-5, rtol=1e-4)
    matrix = 64 * 128 * 4
    bytes_read = [variant.bytes_read / matrix for variant in variants]
    assert bytes_read == [3, 3, 3, 2, 2.5, 1.5, 3 / 4]


def test_bandwidth(benchmark):
    assert benchmark.copy_bandwidth(size=1 << 20, repeats=2) > 0


@pytest.mark.parametrize("argument", ["--rows=0", "--repeats=0", "--threads=-1"])
def test_bad_numbers(benchmark, argument):
    with pytest.raises(SystemExit):
        benchmark.parse_options([argument])
