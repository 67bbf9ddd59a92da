# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Which of several ways to compute the same thing is the fastest here: measured once per process and situation.

Ways agree up to rounding. Where runs have to agree to the bit, `backend="reference"` or `"fast"` leaves no choice.
"""

import functools
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import numpy as np


Answer = TypeVar("Answer")
REPEATS = 3
MORE_THAN_CACHES_HOLD = 1 << 26
"""Bytes to write, so that what was read before is in no cache any more."""

_FASTEST: dict[Hashable, str] = {}


def run_fastest(situation: Hashable, ways: Mapping[str, Callable[[], Answer]], cold: bool = False) -> Answer:
    """Compute something the way that is the fastest in a situation.

    The first call in a situation times every way: once to warm up, then the best of three.

    Args:
        situation (`Hashable`): What the times depend on, coarse enough to be met again.
        ways (`Mapping[str, Callable]`): Functions without arguments that give the same answer, and may run repeatedly.
        cold (`bool`, *optional*, defaults to `False`): Time them with empty caches, as for weights, which a step
            reads once.
    """
    name = _FASTEST.get(situation)
    if name is None or name not in ways:
        name = min(ways, key=lambda way: _seconds(ways[way], cold)) if len(ways) > 1 else next(iter(ways))
        _FASTEST[situation] = name
    return ways[name]()


def measured_choices() -> dict[Hashable, str]:
    """What was found to be the fastest so far, by situation."""
    return dict(_FASTEST)


def _seconds(way: Callable, cold: bool) -> float:
    way()
    return min(_timed(way, cold) for _ in range(REPEATS))


def _timed(way: Callable, cold: bool) -> float:
    if cold:
        np.add(_spare_memory(), 1, out=_spare_memory())
    begin = time.perf_counter()
    way()
    return time.perf_counter() - begin


@functools.lru_cache
def _spare_memory() -> np.ndarray:  # no tensor: one that was made in inference mode could not be written later
    return np.zeros(MORE_THAN_CACHES_HOLD, dtype=np.uint8)
