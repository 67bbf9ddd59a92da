# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Drawn cases break no promise: the first few of seed 0. `make fuzz` runs thousands."""

import subprocess
import sys

import pytest

from fuzz.campaign import describe, run
from fuzz.case import Case
from fuzz.drawing import draw
from support.paths import TESTS


SHARES, QUICK, EACH = 20, 8, 10
"""Shares of cases, how many of them are quick tests, and cases in each."""


@pytest.mark.parametrize(
    "share", [pytest.param(n, marks=[pytest.mark.slow] if n >= QUICK else []) for n in range(SHARES)]
)
def test_drawn_cases_break_no_promise(share):
    summary = run(seed=0, numbers=range(share * EACH, (share + 1) * EACH), simplify=False)
    assert not summary.broken, "".join(describe(report) for report in summary.broken)


class TestTheFuzzerItself:
    """Cases are the same in every process, can be pasted, and are not all refused."""

    def test_a_case_is_printed_as_the_expression_that_makes_it(self):
        drawn = [draw(seed=3, number=number) for number in range(20)]
        assert [eval(repr(case)) for case in drawn] == drawn
        assert repr(Case()) == "Case()"

    def test_a_number_is_always_the_same_case(self):
        assert draw(seed=3, number=7) == draw(seed=3, number=7)
        assert draw(seed=3, number=7) != draw(seed=3, number=8) != draw(seed=4, number=8)

    @pytest.mark.slow
    def test_two_processes_share_the_cases(self):
        command = [sys.executable, "-m", "fuzz", "--seed", "3", "--cases", "6", "--jobs", "2"]
        done = subprocess.run(command, cwd=TESTS, capture_output=True, text=True)
        assert "seed 3: 6 cases in" in done.stdout and done.returncode == 0, done.stdout + done.stderr
