# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Runs a case and asks every oracle."""

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

from fuzz import mistakes
from fuzz.case import Case
from fuzz.claims import Violation, claim
from fuzz.controllers import FAULTS
from fuzz.conversation import Conversation, begin, hold_on
from fuzz.models import axes_of, base_of, model_of
from fuzz.oracles import aftermath, budget, dense, interruption, lossless, replay, rows, trace


OF_OTHER_BASES = (
    "cannot be controlled",
    "`bits_backend='int8'` needs",
    "`bits_backend='nested'` reads plain",
    "not used by the model: ['past_key_values']",
)
"""Parts of the messages that bases other than those of all tests may be refused with."""


@dataclass
class Report:
    """What was found.

    Args:
        case ([`Case`]): The case.
        refused (`str`, *optional*): Beginning of the message of the error that refused it, as it had to.
        violations (`dict[str, str]`): What does not hold, by oracle.
        asked (`list[str]`): The oracles that had something to check.
    """

    case: Case
    refused: str | None = None
    violations: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def ask(self, name: str, question: Callable[[], None]) -> bool:
        """Ask an oracle; whether all it claims holds."""
        try:
            question()
        except Violation as violation:
            self.violations[name] = str(violation)
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            self.violations[name] = (
                f"{type(error).__name__}: {error} ({place.name} in {place.filename}:{place.lineno})"
            )
        return name not in self.violations


def examine(case: Case, only: str | None = None) -> Report:
    """Run a case and ask every oracle that has something to say on it, or only the one of this name."""
    report = Report(case)
    with axes_of(case):
        if not case.is_tested and not _base_can(case):
            report.refused = "the base itself cannot"
            return report
        before = aftermath.Snapshot.of(base_of(case))
        conversation = begin(case, model_of(case))
        finished = report.ask("call", lambda: _run(report, conversation))
        report.ask("aftermath", lambda: aftermath.check(before, conversation.model.base, "after the calls"))
        if finished and report.refused is None:
            for name, question in _questions(conversation):
                if only not in (None, name):
                    continue
                report.asked.append(name)
                report.ask(name, question)
            report.ask("aftermath", lambda: aftermath.check(before, conversation.model.base, "after all oracles"))
    return report


def _base_can(case: Case) -> bool:
    """Whether the base can be made, and can run the first prompt densely."""
    try:
        dense.dense_output(begin(case, model_of(case)))
    except Exception:
        return False
    return True


def _run(report: Report, conversation: Conversation) -> None:
    """Run the calls. What has to be refused is refused before any compute, and nothing else."""
    reasons = list(mistakes.expected(report.case))
    is_late = report.case.controller in FAULTS  # which is seen at the first step, after the prompt
    try:
        hold_on(conversation)
    except (ValueError, NotImplementedError) as error:
        if not report.case.is_tested:
            reasons += OF_OTHER_BASES
        claim(reasons, f"refused: {error}")
        message = str(error)
        claim(any(reason in message.lower() for reason in reasons), f"the message does not say {reasons}: {message}")
        claim(
            is_late or conversation.calls.forwards == 0,
            f"refused after {conversation.calls.forwards} forwards: {error}",
        )
        report.refused = reasons[0]
    else:
        claim(not reasons, f"not refused, although {reasons}")


def _questions(conversation: Conversation) -> list[tuple[str, Callable[[], None]]]:
    """The oracles that apply, by name."""
    if conversation.case.is_dense:
        asked = [("dense", dense.check)] if dense.applies(conversation) else []
    else:
        asked = [("trace", trace.check), ("budget", budget.check)]
        asked += [("replay", replay.check)] if replay.applies(conversation) else []
        asked += [("rows", rows.check)] if rows.applies(conversation) else []
        asked += [("lossless", lossless.check)] if lossless.applies(conversation) else []
    asked += [("interruption", interruption.check)] if interruption.applies(conversation) else []
    return [(name, lambda check=check: check(conversation)) for name, check in asked]
