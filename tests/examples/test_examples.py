# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The example scripts run as their docstrings say."""

import os
import subprocess
import sys

import pytest

from support.paths import EXAMPLES


def test_generate_tiny(tmp_path):
    command = [sys.executable, EXAMPLES / "generate.py", "--tiny", "--token-keep", "0.45", "--bits", "7.5"]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8"}
    outcome = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=120
    )
    assert outcome.returncode == 0, outcome.stderr
    lines = outcome.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "dense",
        "under budget",
        "actions",
        "token_keep",
        "mlp_keep",
        "bits",
    ]
    assert set(lines[2].split()[1:]) <= {f"k{k}-s090-q{q}" for k in ("040", "050") for q in ("07", "08")}
    for line, target in zip(lines[3:], (0.45, 0.9, 7.5), strict=True):
        assert f"asked for {target:g}," in line
        assert target - 0.1 < float(line.split()[-1]) <= target
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "begins"),
    [
        ("serve_client.py", ["{'bits': 99} is refused: ", "dense: ", "8 bits: ", "half of the tokens, 6 bits: "]),
        ("chat.py", ["    token_keep 0."]),
    ],
)
def test_conversations_tiny(tmp_path, script, begins):
    command = [sys.executable, EXAMPLES / script, "--tiny"]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8"}
    outcome = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=200
    )
    assert outcome.returncode == 0, outcome.stderr
    for begin in begins:
        assert any(line.startswith(begin) for line in outcome.stdout.splitlines()), outcome.stdout
