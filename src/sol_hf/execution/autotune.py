# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Which of several ways to compute the same thing is the fastest here: measured once per process and situation.

The measuring is done on work that has to be done anyway. The first calls in a situation take the ways in turn and time
them; as the layers of a model call one after another, each with weights and keys of its own, the caches are as cold as
they will be later. After that the fastest way is taken.

Ways agree up to rounding. Where runs have to agree to the bit, `backend="reference"` or `"fast"` leaves no choice.
"""

import math
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar


Answer = TypeVar("Answer")
REPEATS = 3
"""Times that each way is timed; one more call before those warms it up."""

_TRIALS: dict[Hashable, "Trial"] = {}
_FASTEST: dict[Hashable, str] = {}


class Trial:
    """Times of several ways, taken in turn.

    Args:
        names (`tuple[str, ...]`): The ways.
    """

    def __init__(self, names: tuple[str, ...]):
        self.names = names
        self.best = dict.fromkeys(names, math.inf)
        self.calls = dict.fromkeys(names, 0)

    @property
    def is_over(self) -> bool:
        """Whether every way was timed often enough."""
        return min(self.calls.values()) > REPEATS

    @property
    def winner(self) -> str:
        """The way whose best time is the shortest."""
        return min(self.best, key=self.best.__getitem__)

    def run(self, ways: Mapping[str, Callable[[], Answer]]) -> Answer:
        """Compute the answer by the way that was called least, and time it unless that was its first call."""
        name = min(self.names, key=self.calls.__getitem__)
        begin = time.perf_counter()
        answer = ways[name]()
        seconds = time.perf_counter() - begin
        if self.calls[name]:
            self.best[name] = min(self.best[name], seconds)
        self.calls[name] += 1
        return answer


def run_fastest(situation: Hashable, ways: Mapping[str, Callable[[], Answer]]) -> Answer:
    """Compute something the way that is the fastest in a situation, or one that is still to be timed.

    Args:
        situation (`Hashable`): What the times depend on, coarse enough to be met again.
        ways (`Mapping[str, Callable]`): Functions without arguments that give the same answer.
    """
    name = _FASTEST.get(situation)
    if name is not None and name in ways:
        return ways[name]()
    if len(ways) == 1:
        return next(iter(ways.values()))()
    trial = _TRIALS.get(situation)
    if trial is None or trial.names != tuple(ways):
        trial = _TRIALS[situation] = Trial(tuple(ways))
    answer = trial.run(ways)
    if trial.is_over:
        _FASTEST[situation] = trial.winner
        _TRIALS.pop(situation, None)
    return answer


def measured_choices() -> dict[Hashable, str]:
    """What was found to be the fastest so far, by situation."""
    return dict(_FASTEST)
