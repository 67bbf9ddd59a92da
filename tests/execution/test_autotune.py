# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Autotuning: every call runs one implementation once, and the one with the shortest time is chosen."""

import pytest

from sol_hf.execution import autotune


CALLS = 2 * (1 + autotune.REPEATS)
"""Number of calls until two implementations are timed."""


class Ways:
    """Named implementations that take given times of a fake clock, and record their calls."""

    def __init__(self, monkeypatch, **seconds):
        self.now, self.calls = 0.0, []
        self.functions = {name: self.way(name, iter(times)) for name, times in seconds.items()}
        monkeypatch.setattr(autotune, "_FASTEST", {})
        monkeypatch.setattr(autotune, "_TRIALS", {})
        monkeypatch.setattr(autotune.time, "perf_counter", lambda: self.now)

    def way(self, name, times):
        def run():
            self.now += next(times)
            self.calls.append(name)
            return name

        return run

    def run(self, times, situation="here"):
        return [autotune.run_fastest(situation, self.functions) for _ in range(times)]


def test_ways_take_turns_until_the_fastest_is_known(monkeypatch):
    ways = Ways(monkeypatch, slow=[2.0] * 9, quick=[1.0] * 9)
    assert ways.run(CALLS) == ["slow", "quick"] * (CALLS // 2) == ways.calls
    assert autotune.measured_choices() == {"here": "quick"}
    assert ways.run(2) == ["quick", "quick"]


def test_the_first_call_of_a_way_only_warms_it_up(monkeypatch):
    ways = Ways(monkeypatch, slow=[0.1, 2, 2, 2, 2], quick=[9, 1, 1, 1, 1])
    ways.run(CALLS)
    assert autotune.measured_choices() == {"here": "quick"}


def test_the_best_time_counts(monkeypatch):
    ways = Ways(monkeypatch, steady=[2.0] * 9, disturbed=[3, 50, 1, 50, 1])
    ways.run(CALLS)
    assert autotune.measured_choices() == {"here": "disturbed"}


def test_situations_are_apart(monkeypatch):
    ways = Ways(monkeypatch, slow=[2.0] * 20, quick=[1.0] * 20)
    ways.run(CALLS)
    assert ways.run(1, situation="there") == ["slow"] and list(autotune.measured_choices()) == ["here"]


@pytest.mark.parametrize("calls", [0, 3, CALLS])
def test_ways_that_are_not_to_be_had_are_not_taken(calls, monkeypatch):
    ways = Ways(monkeypatch, slow=[2.0] * 9, quick=[1.0] * 9)
    ways.run(calls)
    ways.functions = {"slow": ways.functions["slow"]}
    assert ways.run(2) == ["slow", "slow"]


def test_an_error_is_no_time(monkeypatch):
    ways = Ways(monkeypatch, slow=[2.0] * 9, quick=[1.0] * 9)

    def broken():
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        autotune.run_fastest("here", {"slow": broken, "quick": ways.functions["quick"]})
    ways.run(CALLS)
    assert autotune.measured_choices() == {"here": "quick"}
