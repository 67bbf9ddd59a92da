# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""How likely a drafted token is the one that is taken: learned from those that were checked.

A draft is wrong where two tokens were nearly as likely. So shares are kept by the *gap* between the two best tokens of
the draft, in nats: with weights in 8 bits and a fifth of the keys, nine out of ten wrong drafts have a gap below 0.4.
"""

import bisect
import math


EDGES = (0.1, 0.2, 0.4, 0.7, 1.0, 2.0)
"""Gaps in nats at which the next bin begins."""
MEASURED = (0.57, 0.72, 0.957, 0.965, 0.99, 0.993, 0.998)
"""Share of drafted tokens that agreed, by bin: SmolLM2-135M, 8 bits, a fifth of the keys, context 512, 16 texts."""
CERTAINTY = 8.0
"""Tokens for which the measured shares count in the beginning."""
MEMORY = 0.98
"""Weight of all earlier tokens of a bin after another one."""
MEMORY_OF_SHARES = 0.99
"""The same of the share of the tokens in every bin, by which it is judged whether drafts pay at all: in several rows a
small mistake of it is a large one of the chance that all agree."""
SHARES = (0.053, 0.045, 0.077, 0.105, 0.08, 0.21, 0.43)
"""Share of the tokens in every bin, in the same texts."""


class Agreement:
    """Shares of drafted tokens that were taken, by the gap of the draft.

    Nothing in it depends on time: the same texts give the same shares.
    """

    def __init__(self) -> None:
        self._taken = [share * CERTAINTY for share in MEASURED]
        self._drafted = [CERTAINTY] * len(MEASURED)
        self._weights = list(SHARES)

    def probability(self, gap: float) -> float:
        """The chance that a token with this gap is taken; 1 for one without another choice."""
        if gap == math.inf:
            return 1.0
        place = bisect.bisect_right(EDGES, gap)
        return self._taken[place] / self._drafted[place]

    @property
    def mean(self) -> float:
        """The chance that a drafted token is taken, before its gap is known."""
        chances = (taken / drafted for taken, drafted in zip(self._taken, self._drafted, strict=True))
        return sum(map(float.__mul__, chances, self._weights)) / sum(self._weights)

    def record(self, gap: float, is_taken: bool) -> None:
        """Note that a drafted token was taken, or that another one was."""
        place = bisect.bisect_right(EDGES, gap)
        self._taken[place] = MEMORY * self._taken[place] + is_taken
        self._drafted[place] = MEMORY * self._drafted[place] + 1
        step = 1 - MEMORY_OF_SHARES
        self._weights = [(1 - step) * weight + step * (index == place) for index, weight in enumerate(self._weights)]
