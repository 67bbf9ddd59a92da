# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Finds the fastest of several implementations on this machine, once per process and situation.

A situation is a key with everything that the times depend on. The first calls in a situation use the implementations
in turn and time them; there are no extra runs. The calls come from different layers, each with its own weights and
keys, so that their data is not in the processor's caches, as in later calls. After that the fastest implementation is
used.

Implementations agree up to rounding. For results that are the same to the bit, use `backend="reference"` or `"fast"`,
which measure no times.
"""

import math
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar


Result = TypeVar("Result")
REPEATS = 3
"""Timed calls per implementation, after one call to warm up."""

_TRIALS: dict[Hashable, "Trial"] = {}
_FASTEST: dict[Hashable, str] = {}


class Trial:
    """Times of several implementations, used in turn.

    Args:
        names (`tuple[str, ...]`): The implementations.
    """

    def __init__(self, names: tuple[str, ...]):
        self.names = names
        self.best = dict.fromkeys(names, math.inf)
        self.calls = dict.fromkeys(names, 0)

    @property
    def is_over(self) -> bool:
        """Whether every implementation was timed `REPEATS` times."""
        return min(self.calls.values()) > REPEATS

    @property
    def winner(self) -> str:
        """The implementation whose best time is the shortest."""
        return min(self.best, key=self.best.__getitem__)

    def run(self, usable: Mapping[str, Callable[[], Result]]) -> Result:
        """Compute the result by the implementation with the fewest calls; time it unless this is its first call."""
        name = min(self.names, key=self.calls.__getitem__)
        begin = time.perf_counter()
        result = usable[name]()
        seconds = time.perf_counter() - begin
        if self.calls[name]:
            self.best[name] = min(self.best[name], seconds)
        self.calls[name] += 1
        return result


def run_fastest(situation: Hashable, usable: Mapping[str, Callable[[], Result]]) -> Result:
    """Compute something by the implementation that is the fastest in a situation, or by one that is still to be timed.

    Args:
        situation (`Hashable`): Key with everything that the times depend on, coarse enough to occur repeatedly.
        usable (`Mapping[str, Callable]`): Implementations by name: functions without arguments that give the same
            result.
    """
    name = _FASTEST.get(situation)
    if name is not None and name in usable:
        return usable[name]()
    if len(usable) == 1:
        return next(iter(usable.values()))()
    trial = _TRIALS.get(situation)
    if trial is None or trial.names != tuple(usable):
        trial = _TRIALS[situation] = Trial(tuple(usable))
    result = trial.run(usable)
    if trial.is_over:
        _FASTEST[situation] = trial.winner
        _TRIALS.pop(situation, None)
    return result


def known_fastest(situation: Hashable) -> str | None:
    """Name of the implementation that was found to be the fastest in a situation, `None` if it was not measured."""
    return _FASTEST.get(situation)


def measured_choices() -> dict[Hashable, str]:
    """Names of the fastest implementations found so far, by situation."""
    return dict(_FASTEST)
