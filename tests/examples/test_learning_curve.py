# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The learning curve shows the results of the evaluations in the order of the updates."""

import importlib
import json
import sys
from pathlib import Path

import pytest

from support.paths import ROOT


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    yield importlib.import_module("learning_curve")
    for name in ("learning_curve", "recipe_runs", "train_grpo", "evaluate_policy"):
        sys.modules.pop(name, None)


def evaluated(folder: Path, gain: float) -> Path:
    """A folder of a policy that was evaluated before."""
    folder.mkdir()
    row = dict(requested=[0.5, 0.7, 8], realised=[0.5, 0.7, 8], losses=[1.0, 2.0], fixed_losses=[1 + gain, 2 + gain])
    (folder / "evaluation.json").write_text(json.dumps({"evaluations": [row] * 5}))
    return folder


def test_points_are_in_the_order_of_the_updates(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script.recipe_runs.evaluate_policy, "main", lambda *_: pytest.fail("evaluated again"))
    folders = [evaluated(tmp_path / name, gain) for name, gain in (("update-1000", 0.3), ("update-00200", 0.1))]
    points = script.main(["valid.jsonl", *map(str, folders), "--out", str(tmp_path / "curve")])
    assert [point["updates"] for point in points] == [200, 1000]
    assert [point["gain"] for point in points] == pytest.approx([0.1, 0.3])
    assert json.loads((tmp_path / "curve.json").read_text()) == points
    assert "<svg" in (tmp_path / "curve.svg").read_text() and (tmp_path / "curve.png").stat().st_size > 5000


def test_a_folder_without_a_number_is_an_error(script, tmp_path):
    with pytest.raises(ValueError, match="has no number in it"):
        script.main(["valid.jsonl", str(evaluated(tmp_path / "policy", 0.1)), "--out", str(tmp_path / "curve")])
