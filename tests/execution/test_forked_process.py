# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A process that is forked after a generation works with one thread, and does not hang with several."""

import os
import subprocess
import sys

import pytest

from sol_hf.execution import forked_process
from support.cases import HALF, prompts, sol_model
from support.paths import PYTHON_PATH, SUPPORT


pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
REFUSED = "This process was forked after torch had started its threads"


def said(*arguments: str) -> str:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", str(SUPPORT / "fork_after_use.py"), *arguments]
    environment = os.environ | {"PYTHONPATH": PYTHON_PATH, "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("options", [{}, {"backend": "fast"}, HALF])
def test_a_process_that_knows_of_lost_threads_refuses_before_any_compute(options, monkeypatch):
    model, ids = sol_model(), prompts()
    monkeypatch.setattr(forked_process._THREADS, "here", True)
    forked_process._THREADS.after_fork()  # as in a forked process
    monkeypatch.setattr(forked_process.torch, "get_num_threads", lambda: 2)
    try:
        with pytest.raises(RuntimeError, match=REFUSED):
            model.generate(ids, max_new_tokens=2, **options)
        with pytest.raises(RuntimeError, match=REFUSED):
            model.score(ids, context_length=9, **{k: v for k, v in options.items() if k != "backend"})
        monkeypatch.setattr(forked_process.torch, "get_num_threads", lambda: 1)
        model.generate(ids, max_new_tokens=2, **options)
    finally:
        forked_process._THREADS.before_fork = False


@pytest.mark.slow
def test_several_threads_are_refused_instead_of_waited_for():
    found = said("2", "2", "budget")
    assert found.startswith(REFUSED) and "call `torch.set_num_threads(1)`" in found and "\n" not in found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("threads", "of_child", "budget", "expected"),
    [
        ("1", "1", "budget", "same text"),
        ("2", "1", "budget", "same text"),
        ("2", "1", "none", "same text"),
        ("2", "2", "none", REFUSED),
    ],
)
def test_what_a_forked_process_does(threads, of_child, budget, expected):
    assert said(threads, of_child, budget).startswith(expected)
