# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Runs many drawn cases, and reports every violation with the case that shows it."""

import functools
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
import transformers

from fuzz.case import Case
from fuzz.drawing import draw
from fuzz.examine import Report, examine
from fuzz.minimise import minimise


EVERY = 100
"""Cases between two lines of progress."""


@dataclass
class Summary:
    """What a campaign found.

    Args:
        cases (`int`): Cases that were run.
        refused (`Counter`): Cases that had to be refused and were, by reason.
        asked (`Counter`): Cases for which an oracle had something to check, by oracle.
        broken (`list[Report]`): Cases with violations.
        seconds (`float`): How long it took.
    """

    cases: int = 0
    refused: Counter = field(default_factory=Counter)
    asked: Counter = field(default_factory=Counter)
    broken: list[Report] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, report: Report) -> None:
        """Count a case."""
        self.cases += 1
        self.asked.update(report.asked)
        if report.refused is not None:
            self.refused[report.refused] += 1
        if report.violations:
            self.broken.append(report)

    def join(self, other: "Summary") -> "Summary":
        """Both summaries as one; they ran at the same time."""
        return Summary(
            self.cases + other.cases,
            self.refused + other.refused,
            self.asked + other.asked,
            self.broken + other.broken,
            max(self.seconds, other.seconds),
        )

    def __str__(self) -> str:
        violations = sum(len(report.violations) for report in self.broken)
        lines = [
            f"{self.cases:,} cases in {self.seconds:,.0f} s, {violations} violations, "
            f"refused as they have to be: {sum(self.refused.values())}"
        ]
        lines += [f"  {number:6d}  {reason}" for reason, number in self.refused.most_common()]
        lines.append("checked: " + ", ".join(f"{name} {number:,}" for name, number in sorted(self.asked.items())))
        return "\n".join(lines)


def run(seed: int, numbers: Iterable[int], say: Callable[[str], None] = print, simplify: bool = True) -> Summary:
    """Run the cases of a seed with the given numbers.

    Args:
        seed (`int`): Of the drawing.
        numbers (`Iterable[int]`): Which cases.
        say (`Callable`, *optional*): Gets the lines of progress, and every violation when it is found.
        simplify (`bool`, *optional*, defaults to `True`): Look for a simpler case with the same violation.
    """
    summary, begin = Summary(), time.monotonic()
    for number in numbers:
        report = examine(draw(seed, number))
        summary.add(report)
        summary.seconds = time.monotonic() - begin
        if report.violations:
            say(f"case {number} of seed {seed}: {describe(report)}")
            if simplify:
                say(f"simplest case with this violation: {describe(examine(simplest(report)))}")
        if summary.cases % EVERY == 0:
            say(f"{summary.cases:,} cases, {len(summary.broken)} with violations, {summary.seconds:,.0f} s")
    return summary


def run_share(arguments: Namespace, index: int) -> Summary:
    """The share of one of several processes: every so manyth case; see `__main__.py` for the arguments."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    numbers = range(arguments.first + index, arguments.first + arguments.cases, arguments.jobs)
    say = functools.partial(print, *([f"[{index}]"] if arguments.jobs > 1 else []), flush=True)
    return run(arguments.seed, numbers, say, simplify=not arguments.as_drawn)


def describe(report: Report) -> str:
    """The violations of a case, and the case as an expression."""
    found = "\n".join(f"  {name}: {message}" for name, message in report.violations.items())
    return f"\n{found}\n  {report.case!r}"


def simplest(report: Report) -> Case:
    """A simpler case in which the same oracle finds a violation."""
    name = next(iter(report.violations))

    def is_broken(case: Case) -> bool:
        try:
            return name in examine(case, only=name).violations
        except ValueError:
            return False  # not a case any more: levels or settings that no config accepts

    return minimise(report.case, is_broken)
