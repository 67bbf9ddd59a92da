# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The choice among several ways: every call computes one of them, once, and the shortest time wins."""

import pytest

from sol_hf.execution import autotune as crossover


CALLS = 2 * (1 + crossover.REPEATS)
"""Until two ways are timed."""


class Ways:
    """Named ways that take given seconds of a clock of their own, and note that they were called."""

    def __init__(self, monkeypatch, **seconds):
        self.now, self.calls = 0.0, []
        self.functions = {name: self.way(name, iter(times)) for name, times in seconds.items()}
        monkeypatch.setattr(crossover, "_FASTEST", {})
        monkeypatch.setattr(crossover, "_TRIALS", {})
        monkeypatch.setattr(crossover.time, "perf_counter", lambda: self.now)

    def way(self, name, times):
        def run():
            self.now += next(times)
            self.calls.append(name)
            return name

        return run

    def run(self, times, situation="here"):
        return [crossover.run_fastest(situation, self.functions) for _ in range(times)]


def test_ways_take_turns_until_the_fastest_is_known(monkeypatch):
    ways = Ways(monkeypatch, slow=[2.0] * 9, quick=[1.0] * 9)
    assert ways.run(CALLS) == ["slow", "quick"] * (CALLS // 2) == ways.calls
    assert crossover.measured_choices() == {"here": "quick"}
    assert ways.run(2) == ["quick", "quick"]


def test_the_first_call_of_a_way_only_warms_it_up(monkeypatch):
    ways = Ways(monkeypatch, slow=[0.1, 2, 2, 2, 2], quick=[9, 1, 1, 1, 1])
    ways.run(CALLS)
    assert crossover.measured_choices() == {"here": "quick"}


def test_the_best_time_counts(monkeypatch):
    ways = Ways(monkeypatch, steady=[2.0] * 9, disturbed=[3, 50, 1, 50, 1])
    ways.run(CALLS)
    assert crossover.measured_choices() == {"here": "disturbed"}


def test_situations_are_apart(monkeypatch):
    ways = Ways(monkeypatch, slow=[2.0] * 20, quick=[1.0] * 20)
    ways.run(CALLS)
    assert ways.run(1, situation="there") == ["slow"] and list(crossover.measured_choices()) == ["here"]


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
        crossover.run_fastest("here", {"slow": broken, "quick": ways.functions["quick"]})
    ways.run(CALLS)
    assert crossover.measured_choices() == {"here": "quick"}
