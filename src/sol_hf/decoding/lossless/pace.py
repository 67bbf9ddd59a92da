# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""How long a draft pays: see docs/lossless.md.

With `d` the time of a dense step, `c` of a draft's step, `v(n)` of a check of `n` tokens, and `a` the chance that a
drafted token is taken, a draft of `g` tokens makes

    E(g) = 1 + a + a^2 + ... + a^g   tokens in   g c + v(g + 1),    a dense step one token in   d

The best rate over all `g` is compared with that of dense steps. Within a draft, another token pays as long as the
chance that all so far are taken, and the next one too, is larger than what it costs at that rate.
"""

import statistics
import time
from collections import deque
from dataclasses import dataclass, field

from .agreement import Agreement


LONGEST = 16
"""Tokens of a draft at most."""
TRUSTED = 8
"""Drafts whose measured rate counts as much as the model's: a few of them may have been lucky or unlucky."""
DRAFTS = 32
"""Drafts that are remembered for that."""
SAMPLES = 9
"""Times of each kind that are remembered; their median counts."""
DENSE_FIRST = 3
"""Dense steps that are timed before the first draft, the first of which may compile and copy."""
COMPILING = 8.0
"""Dense steps above which the first draft of a setting is taken to have loaded compiled code, once in a process."""
LEAST_GAIN = 1.02
"""Drafts begin where they are expected to be faster than dense steps by this factor."""
MOST_LOSS = 0.015
"""Share of the time of dense steps that may be spent on finding out whether drafts pay."""
FIRST_LOSS = 2.0
"""Dense steps that the first texts of a setting may lose to find it out."""
ONCE = 5.0
"""Dense steps that the first draft of a setting may have lost for another one to follow at once: its codes and
programs are made once."""
FIRST_SHARE = 0.03
"""Share of the time of all texts of a setting that this may be: in short texts it waits until there were enough."""
TRIED = 4
"""Tokens of such a draft, of one row; of several rows as many together, since each makes a check longer."""
FIRST_WAIT = 32
"""Tokens after which drafts that did not pay are tried again; twice as many every time."""
LONGEST_WAIT = 512
"""Tokens after which they are tried again at most."""
STEP, CHECK, MORE = 0.5, 1.3, 0.1
"""Time of a draft's step, of a check, and of each token of a row in it, in dense steps, as long as none was
measured."""

read_clock = time.perf_counter
"""The clock by which drafts are judged; a benchmark on a busy machine may count processor time instead."""


@dataclass
class Costs:
    """Times, in seconds, of one setting: a base, a number of rows, a draft, and about one length of the text.

    They outlive a call, so that the next one need not find them out again. `checks` are by the number of tokens.
    `whole` has the tokens that drafts gave, with the time of a draft and its check. `tokens` is how many tokens were
    made, `lost` how many dense steps drafts have cost beyond what they gave. Drafts that do not pay are tried again
    after `wait` tokens, of which `since` have been made. `rows` are those of the texts.
    """

    rows: int = 1
    dense: deque[float] = field(default_factory=lambda: deque(maxlen=SAMPLES))
    step: deque[float] = field(default_factory=lambda: deque(maxlen=SAMPLES))
    checks: dict[int, deque[float]] = field(default_factory=dict)
    whole: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=DRAFTS))
    tokens: int = 0
    lost: float = 0.0
    wait: int = FIRST_WAIT
    since: int = 0
    skipped: set[str] = field(default_factory=set)

    def note_dense(self, seconds: float) -> None:
        """Note the time of a dense step."""
        if not self.is_first("dense"):
            self.dense.append(seconds)

    def note_draft(self, drafting: float, drafted: int, checking: float) -> None:
        """Note what it took to draft tokens, and to check them together with the one before them.

        The first check of a number of tokens puts its program together, and does not count.
        """
        self.step.append(drafting / drafted)
        if not self.is_first(f"check of {drafted + 1}"):
            self.checks.setdefault(drafted + 1, deque(maxlen=SAMPLES)).append(checking)

    def is_first(self, kind: str) -> bool:
        """Whether this is the first time of a kind, in which something may have been compiled or copied."""
        is_first = kind not in self.skipped
        self.skipped.add(kind)
        return is_first

    @property
    def dense_step(self) -> float | None:
        """Seconds of a dense step; `None` if none was timed."""
        return statistics.median(self.dense) if self.dense else None

    @property
    def relative_step(self) -> float:
        """Time of a draft's step, in dense steps."""
        dense = self.dense_step
        return statistics.median(self.step) / dense if dense and self.step else STEP

    def relative_check(self, tokens: int) -> float:
        """Time of a check of so many tokens, in dense steps: as measured, or from the nearest number that was.

        It is at least one: a dense step checks one token.
        """
        dense = self.dense_step
        if not dense or not self.checks:
            return CHECK + MORE * self.rows * tokens
        nearest = min(self.checks, key=lambda known: (abs(known - tokens), known))
        return max(1.0, statistics.median(self.checks[nearest]) / dense + MORE * self.rows * (tokens - nearest))

    @property
    def are_known(self) -> bool:
        """Whether drafts have been timed often enough, or are slower than dense steps without any check."""
        if self.dense_step is None or not self.step:
            return False
        return len(self.step) >= 3 or min(self.step) > self.dense_step


class Pace:
    """Decides how many tokens are drafted, in one call.

    Args:
        costs ([`Costs`]): What is known of the times.
        agreement ([`Agreement`]): What is known of the drafts.
        rows (`int`): Rows of the call: a draft goes on as long as all of them take it.
        length (`int`, *optional*): Tokens of every draft, if nothing is to depend on measured times.
        longest (`int`, *optional*, defaults to 16): Most tokens of a draft.
    """

    def __init__(
        self, costs: Costs, agreement: Agreement, rows: int = 1, length: int | None = None, longest: int = LONGEST
    ):
        self.costs, self.agreement, self._rows, self._length = costs, agreement, rows, length
        self._longest, self._tried_length = longest, max(1, TRIED // rows)
        self._has_drafted, self._rate = False, 1.0

    def begin(self, most: int, left: int | None = None) -> int:
        """How many tokens may be drafted now; 0 for a dense step.

        Args:
            most (`int`): At most so many.
            left (`int`, *optional*): Tokens up to the end of the text, if that is known.
        """
        if self._length is not None or most < 1:
            return max(0, min(self._length or 0, most))
        most = min(most, self._longest)
        if len(self.costs.dense) + len(self.costs.skipped & {"dense"}) < DENSE_FIRST:
            return 0
        self._rate = max(1.0, self.expected_rate())
        if self.costs.are_known and self._rate >= LEAST_GAIN:
            self.costs.wait = FIRST_WAIT
            return most
        return self._tried(most, left)

    def _tried(self, most: int, left: int | None) -> int:
        """How many tokens are drafted to find out whether drafts pay, or do so by now."""
        allowed, length = MOST_LOSS * self.costs.tokens - self.costs.lost, self._tried_length
        loss = max(0.0, self._cost(length) - expected_tokens(length, self.chance))
        if not self.costs.are_known:
            if left is not None and FIRST_SHARE * (self.costs.tokens + left) < FIRST_LOSS:
                return 0
            if not self.costs.step:  # the first of all may compile and copy, and does not tell; the next one is timed
                return 1 if allowed + ONCE >= 0 else 0
            return min(most, length) if allowed + FIRST_LOSS >= loss else 0
        if self.costs.since < self.costs.wait or allowed < loss:
            return 0
        self.costs.wait, self.costs.since = min(2 * self.costs.wait, LONGEST_WAIT), 0
        self.costs.whole.clear()
        self._rate = max(1.0, self.expected_rate())
        return most if self._rate >= LEAST_GAIN else min(most, self._tried_length)

    def expected_rate(self) -> float:
        """Tokens that drafts and their checks give in the time of a dense step: by the model, and as measured."""
        lengths = range(1, self._longest + 1)
        rate = max(expected_tokens(length, self.chance) / self._cost(length) for length in lengths)
        dense, seen = self.costs.dense_step, self.costs.whole
        if dense is None or not seen:
            return rate
        measured = sum(tokens for tokens, _ in seen) * dense / sum(seconds for _, seconds in seen)
        return (TRUSTED * rate + len(seen) * measured) / (TRUSTED + len(seen))

    def _cost(self, length: int) -> float:
        """Time of a draft of so many tokens and of its check, in dense steps."""
        return length * self.costs.relative_step + self.costs.relative_check(length + 1)

    @property
    def chance(self) -> float:
        """That a token is taken in every row, before it is drafted."""
        return self.agreement.mean**self._rows

    def goes_on(self, drafted: int, chance: float) -> bool:
        """Whether another token pays, after `drafted` that are all taken with this chance."""
        if self._length is not None:
            return True
        more = self.costs.relative_check(drafted + 2) - self.costs.relative_check(drafted + 1)
        return chance * self.chance > self._rate * (self.costs.relative_step + max(0.0, more))

    def note_draft(self, drafting: float, drafted: int, checking: float) -> None:
        """Note the time of a draft and its check; not of the first ones of a call, which assemble its programs."""
        if self._has_drafted:
            self.costs.note_draft(drafting, drafted, checking)
        self._has_drafted = True

    def settle(self, tokens: int, seconds: float) -> None:
        """Note how many tokens a draft and its check have given, in this time."""
        self.note_tokens(tokens)
        if self.costs.are_known:
            self.costs.whole.append((tokens, seconds))
        dense = self.costs.dense_step
        if dense and not (self.costs.is_first("draft") and seconds > COMPILING * dense):
            self.costs.lost = max(0.0, self.costs.lost + seconds / dense - tokens)

    def note_tokens(self, tokens: int) -> None:
        """Note that tokens were made."""
        self.costs.tokens, self.costs.since = self.costs.tokens + tokens, self.costs.since + tokens


@dataclass
class Known:
    """What earlier calls have found out about a base.

    Args:
        costs (`dict`): Times by draft, rows, and the logarithm of the length of the text.
        agreements (`dict`): Agreement by draft.
    """

    costs: dict[tuple[str, int, int], Costs] = field(default_factory=dict)
    agreements: dict[str, Agreement] = field(default_factory=dict)

    def pace(self, name: str, rows: int, context: int, length: int | None, longest: int) -> Pace:
        """The [`Pace`] of a call with drafts of this name, after a context of so many tokens."""
        costs = self.costs.setdefault((name, rows, context.bit_length()), Costs(rows))
        return Pace(costs, self.agreements.setdefault(name, Agreement()), rows, length, longest)


def expected_tokens(length: int, chance: float) -> float:
    """Tokens that a draft and its check give on average: those that are taken, and the one after them."""
    return sum(chance**place for place in range(length + 1))
