# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The benchmark of lossless texts: a table, a file, a figure, and counts of equal texts."""

import importlib
import json
import math

import pytest
import torch

from sol_hf.decoding.lossless import pace
from support.bases import tiny_base
from support.paths import EXAMPLES
from support.policy_folders import tiny_tokenizer


QUICK = ("--tokens", "6", "--texts", "1", "--rounds", "1")


@pytest.fixture
def script(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(EXAMPLES / "benchmarks")
    monkeypatch.setattr(pace, "read_clock", pace.read_clock)
    tiny_base("llama").save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    return importlib.import_module("lossless")


@pytest.mark.slow
def test_times_and_the_figure(script, tmp_path, capsys):
    files = ("--json", str(tmp_path / "out.json"), "--plot", str(tmp_path / "out.png"))
    call = ("--model", str(tmp_path / "base"), "--contexts", "20", "--rows", "1", "2")
    assert script.main([*call, *QUICK, *files]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 4 and printed[-1].split()[-1] == "2/2"
    found = json.loads((tmp_path / "out.json").read_text())
    assert [case["rows"] for case in found["cases"]] == [1, 2] and (tmp_path / "out.png").stat().st_size > 5000


@pytest.mark.slow
def test_equal_texts_are_counted(script, tmp_path, capsys):
    assert script.main(["--model", str(tmp_path / "base"), "--contexts", "20", "--tokens", "6", "--equal", "3"]) == 0
    printed = capsys.readouterr().out
    assert "3 of 3 greedy texts are the base's, 3 those of our dense steps, of which 3 are the base's" in printed


def test_where_texts_part(script):
    logits = tuple(torch.tensor([row]).log() for row in ([[0.1, 0.9], [0.6, 0.4]]))
    expected = torch.tensor([[7, 1, 0]])
    assert script.parting(expected, expected, logits) is None
    place, gap = script.parting(torch.tensor([[7, 1, 1]]), expected, logits)
    assert place == 1 and abs(gap - math.log(1.5)) < 1e-6
