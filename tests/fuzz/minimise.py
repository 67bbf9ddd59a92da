# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Makes a case that breaks a promise as simple as it can be while it still breaks it."""

from collections.abc import Callable, Iterator
from typing import Any

from fuzz.case import SIMPLEST, Case


def minimise(case: Case, is_broken: Callable[[Case], bool]) -> Case:
    """The simplest case to be found, by one change after the other, for which `is_broken` still holds."""
    simpler: Case | None = case
    while simpler is not None:
        case = simpler
        others = (other for other in simpler_cases(case) if weight(other) < weight(case))
        simpler = next((other for other in others if is_broken(other)), None)
    return case


def weight(case: Case) -> int:
    """How much there is to read and to run."""
    return len(repr(case)) + sum(case.lengths) + sum(case.turns)


def simpler_cases(case: Case) -> Iterator[Case]:
    """Cases with one thing simpler each: a field at its default, a shorter list, one entry less."""
    for name in case.changed():
        yield case.but(**{name: SIMPLEST[name]})
    yield from fewer_rows(case)
    yield from fewer_turns(case)
    for name in case.changed():
        value = getattr(case, name)
        if isinstance(value, dict):
            yield from (case.but(**{name: smaller}) for smaller in smaller_dicts(value))
    if max(case.lengths) > 1:
        yield case.but(lengths=tuple(max(1, length // 2) for length in case.lengths))
        yield case.but(lengths=tuple(max(1, length - 1) for length in case.lengths))


def fewer_rows(case: Case) -> Iterator[Case]:
    """The case without one of its rows."""
    for row in range(case.rows if case.rows > 1 else 0):
        kept = [index for index in range(case.rows) if index != row]
        budget = {
            name: [value[index] for index in kept] if isinstance(value, list) and len(value) == case.rows else value
            for name, value in case.budget.items()
        }
        limits = None if case.row_limits is None else tuple(case.row_limits[index] for index in kept)
        lengths = tuple(case.lengths[index] for index in kept)
        yield case.but(lengths=lengths, budget=budget, row_limits=limits)


def fewer_turns(case: Case) -> Iterator[Case]:
    """The case without its last turn, or with a shorter one."""
    if len(case.turns) > 1:
        yield case.but(turns=case.turns[:-1], added=case.added[:-1], copies=case.copies if case.added[1:] else None)
    for index, tokens in enumerate(case.turns):
        if tokens > 1:
            yield case.but(turns=(*case.turns[:index], tokens - 1, *case.turns[index + 1 :]))


def smaller_dicts(value: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The dict without one entry, and with one list shorter or replaced by its first number."""
    for name, entry in value.items():
        yield {other: value[other] for other in value if other != name}
        if isinstance(entry, list) and len(entry) > 1:
            yield from ({**value, name: [x for x in entry if x != left_out]} for left_out in entry)
            yield {**value, name: entry[0]}
