# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Who takes part in a sweep, by name: `policy`, `fixed`, `random:100`, `entropy`, `drift`, `oracle`, `oracle:4`."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...budget.action_space import ActionSpace


NAMES = ("policy", "fixed", "random", "entropy", "drift", "oracle")
COUNTED = {"random": 1, "oracle": 0}
"""Names that take a number after a colon, and the smallest one: trials, steps to look ahead."""


@dataclass(frozen=True)
class Contestant:
    """A controller of a sweep.

    Args:
        name (`str`): One of `NAMES`.
        number (`int`): Of `random`, how many schedules are tried, the best of which counts; of `oracle`, over how many
            later steps the damage of a level is measured.
    """

    name: str
    number: int = 0

    @classmethod
    def parse(cls, text: str) -> "Contestant":
        """From `name` or `name:number`.

        Raises:
            ValueError: for an unknown name (with the nearest known one), or a number that is not one.
        """
        name, colon, number = text.strip().partition(":")
        if name not in NAMES:
            near = difflib.get_close_matches(name, NAMES, n=1)
            hint = f" Did you mean `{near[0]}`?" if near else ""
            raise ValueError(f"There is no controller {name!r}.{hint} There are {', '.join(NAMES)}.")
        if not colon:
            return cls(name, COUNTED.get(name, 0))
        if name not in COUNTED:
            raise ValueError(f"{text!r}: only {' and '.join(COUNTED)} take a number.")
        if not number.isdecimal() or int(number) < COUNTED[name]:
            raise ValueError(f"{text!r}: after the colon comes a whole number, at least {COUNTED[name]}.")
        return cls(name, int(number))

    def __str__(self) -> str:
        return f"{self.name}:{self.number}" if self.name in COUNTED and self.number else self.name

    @property
    def draws(self) -> bool:
        """Whether chance is at work, so that every seed makes a row of its own."""
        return self.name == "random"


def parse_contestants(names: Sequence[str]) -> list[Contestant]:
    """Contestants of a sweep, the policy first, since the others are matched with what it spends.

    Args:
        names (`Sequence[str]`): See [`Contestant.parse`]. `dense`, which is there anyway, may be named.

    Raises:
        ValueError: if there is none, or one twice.
    """
    contestants = [Contestant.parse(name) for name in names if name.strip() != "dense"]
    if not contestants:
        raise ValueError(f"There is no controller to play: name some of {', '.join(NAMES)}.")
    twice = sorted({str(x) for x in contestants if contestants.count(x) > 1})
    if twice:
        raise ValueError(f"Named twice: {', '.join(twice)}.")
    return sorted(contestants, key=lambda contestant: contestant.name != "policy")


def random_schedules(
    fixed: torch.Tensor, counted: torch.Tensor, space: ActionSpace, trials: int, seed: int
) -> torch.Tensor:
    """Random orders of the levels of a fixed schedule: every axis of every block is shuffled on its own.

    Means of every block are thus those of the fixed schedule.

    Args:
        fixed (`torch.LongTensor` of shape `(blocks, steps)`): From [`fixed_schedule`].
        counted (`torch.BoolTensor` of shape `(steps,)`): Controllable steps; the others stay.
        space ([`ActionSpace`]): The levels.
        trials (`int`): How many.
        seed (`int`): Of the shuffling.

    Returns:
        `torch.LongTensor` of shape `(blocks, trials, steps)`: Action ids.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = [len(levels) for levels in space.levels.values()]
    rest, digits = fixed[:, counted], []
    for size in reversed(sizes):
        digits.append(rest % size)
        rest = rest // size
    ids = torch.zeros(len(fixed), trials, int(counted.sum()), dtype=torch.long)
    for size, digit in zip(sizes, reversed(digits), strict=True):
        order = torch.rand(ids.shape, generator=generator).argsort(dim=-1)
        ids = ids * size + digit[:, None].expand_as(ids).gather(2, order)
    schedules = fixed[:, None].repeat(1, trials, 1)
    schedules[:, :, counted] = ids
    return schedules
