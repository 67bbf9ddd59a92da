# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Which of several implementations is the fastest on this machine: measured once per process and situation.

Nothing is computed only to be measured. The first calls in a situation use the implementations in turn and time them.
The layers of a model call one after another, each with its own weights and keys, so that the processor's caches are as
cold as they will be later. After that the fastest implementation is used.

Implementations agree up to rounding. Where runs have to agree to the bit, `backend="reference"` or `"fast"` measures
nothing.
"""

import math
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar


Result = TypeVar("Result")
REPEATS = 3
"""How often each implementation is timed, after one call to warm up."""

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
        """Whether every implementation was timed often enough."""
        return min(self.calls.values()) > REPEATS

    @property
    def winner(self) -> str:
        """The implementation whose best time is the shortest."""
        return min(self.best, key=self.best.__getitem__)

    def run(self, usable: Mapping[str, Callable[[], Result]]) -> Result:
        """Compute the result by the implementation that was called least, and time it unless it was its first call."""
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
        situation (`Hashable`): What the times depend on, coarse enough to be met again.
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


def measured_choices() -> dict[Hashable, str]:
    """What was found to be the fastest so far, by situation."""
    return dict(_FASTEST)
