# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What a KV refresh gains after steps at the levels of an axis: a curve through measured points."""

from dataclasses import dataclass
from itertools import pairwise

import torch


@dataclass(frozen=True)
class RefreshGain:
    """By how much later tokens lose less if an episode is refreshed, measured with all of its steps at one level.

    Between two measured levels the gain is interpolated; below the lowest it is that of the lowest.

    Args:
        points (`tuple[tuple[float, float], ...]`, *optional*): Levels in axis units, ascending up to the dense value,
            and the gain at each in nats per token. Without points nothing is gained.
    """

    points: tuple[tuple[float, float], ...] = ()

    def __call__(self, levels: torch.Tensor) -> torch.Tensor:
        """The gains at `levels` in axis units, in float64, of the same shape."""
        levels = levels.double()
        gains = torch.full_like(levels, self.points[0][1] if self.points else 0.0)
        for (low, gain), (high, next_gain) in pairwise(self.points):
            way = ((levels - low) / (high - low)).clamp(max=1.0)
            gains = torch.where(levels > low, gain + (next_gain - gain) * way, gains)
        return gains
