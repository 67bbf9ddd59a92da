# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Times of the steps of a generation, and of parts of the work in them."""

import functools
from collections.abc import Callable

import torch
from transformers.generation.streamers import BaseStreamer

from machine import CLOCKS
from sol_hf import Controller


class Stopwatch(BaseStreamer):
    """Records when tokens arrive, and when parts of the work begin and end."""

    def __init__(self, clock: str = "wall"):
        self.read = CLOCKS[clock]
        self.times: list[float] = []
        self.spans: list[tuple[str, float, float]] = []

    def put(self, value: torch.Tensor) -> None:
        """Takes the prompt first, then one token per row at a time."""
        self.times.append(self.read())

    def end(self) -> None:
        """Required by the streamer interface; does nothing."""

    def timed(self, part: str, function: Callable) -> Callable:
        """Wrap `function` so that its calls are recorded as a part of the work."""

        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            begin = self.read()
            try:
                return function(*args, **kwargs)
            finally:
                self.spans.append((part, begin, self.read()))

        return wrapper

    @property
    def ms(self) -> float:
        """Mean milliseconds of a decode step after the first new token."""
        return 1000 * (self.times[-1] - self.times[1]) / (len(self.times) - 2)

    def share(self, part: str) -> float:
        """Share of the same time that a part took."""
        inside = [end - begin for name, begin, end in self.spans if name == part and begin > self.times[1]]
        return sum(inside) / (self.times[-1] - self.times[1])


class TimedController(Controller):
    """Wraps a controller, and records its calls on a stopwatch as the part `policy`."""

    def __init__(self, inner: Controller, watch: Stopwatch):
        self.needs_budget = inner.needs_budget
        self.call = watch.timed("policy", inner.__call__)

    def __call__(self, observation) -> torch.Tensor:
        return self.call(observation)
