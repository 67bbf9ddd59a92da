# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The entries of a sweep by name: `policy`, `fixed`, `random:100`, `entropy`, `drift`, `oracle`, `oracle:4`, and every
controller that was registered with `register_controller`."""

from collections.abc import Sequence
from dataclasses import dataclass

from ...controllers.names import DENSE, parse_controller
from ...controllers.registry import CONTROLLERS
from .method import SWEEP_METHODS, SweepMethod, SweepSetting
from .methods.step_by_step import StepByStep


POLICY = "policy"


@dataclass(frozen=True)
class SweepEntry:
    """A controller of a sweep, with its number.

    Args:
        name (`str`): Name of a [`SweepMethod`] or of a registered controller.
        number (`int`): The number after the colon. For `random` it is the number of schedules, of which the best is
            used; for `oracle` the number of later steps over which the damage of a level is measured; for a
            controller the meaning is part of its registration.
    """

    name: str
    number: int = 0

    @classmethod
    def parse(cls, text: str) -> "SweepEntry":
        """Parse `name` or `name:number`.

        Raises:
            ValueError: for an unknown name, or a number that the name does not take.
        """
        if text.strip() in SWEEP_METHODS:  # a name may have a colon itself
            return cls(text.strip(), SWEEP_METHODS[text.strip()].least)
        name, colon, number = text.strip().partition(":")
        if name not in SWEEP_METHODS:
            if name not in CONTROLLERS:
                raise CONTROLLERS.unknown(text.strip(), also=_methods_only())
            return cls(*parse_controller(text))
        method = SWEEP_METHODS[name]
        if method.number is None:
            raise ValueError(f"Controller {text!r}: `{name}` takes no number.")
        if not number.isdecimal() or int(number) < method.least:
            raise ValueError(
                f"Controller {text!r}: the {method.number} of `{name}` is a whole number, at least {method.least}."
            )
        return cls(name, int(number))

    def __str__(self) -> str:
        return f"{self.name}:{self.number}" if self.number else self.name

    @property
    def method(self) -> type[SweepMethod]:
        """The class that runs it."""
        return SWEEP_METHODS[self.name] if self.name in SWEEP_METHODS else StepByStep

    def start(self, setting: SweepSetting) -> SweepMethod:
        """An instance of the method, for a sweep."""
        return self.method(setting, self.name, self.number)


def entry_names() -> tuple[str, ...]:
    """Names that a sweep accepts, apart from `dense`, which is always included."""
    return (*CONTROLLERS, *_methods_only())


def _methods_only() -> tuple[str, ...]:
    return tuple(name for name in SWEEP_METHODS if name not in CONTROLLERS)


def parse_entries(names: Sequence[str]) -> list[SweepEntry]:
    """Entries of a sweep, the policy first, since the others are run at the means that it spends.

    Args:
        names (`Sequence[str]`): See [`SweepEntry.parse`]. `dense`, which is always included, is allowed.

    Raises:
        ValueError: for an unknown name, if there is no entry, or if one is repeated.
    """
    entries = [SweepEntry.parse(name) for name in names if name.strip() != DENSE]
    if not entries:
        raise ValueError(f"There is no controller to run: name some of {', '.join(entry_names())}.")
    twice = sorted({str(x) for x in entries if entries.count(x) > 1})
    if twice:
        raise ValueError(f"Named twice: {', '.join(twice)}.")
    return sorted(entries, key=lambda entry: entry.name != POLICY)
