# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The axes: along which quantities a decode step can be made cheaper.

An [`Axis`] describes an axis without reference to a model: its name, its values and how they count. How an axis is
applied to a base is defined by its executor, see `execution/executors.py`. Levels are in *axis units* (`bits`
is a number of bits) where people read or write them, and in *ratio units* (value / scale, in (0, 1]) where compute is
counted.

All axes are in the registry `AXES`. The config of a policy names those of its action space.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..errors import BudgetError
from ..registry import Registry


@dataclass(frozen=True)
class Axis:
    """One quantity that a budget can limit.

    Args:
        name (`str`): Keyword of `SOLConfig`, `Budget` and `generate`.
        dense (`float`): The value at which nothing is left out; also the largest.
        lowest (`float`): Lower end of the values.
        meaning (`str`): Description of a value, for help texts and labels.
        default_levels (`tuple` of `float`): Levels of an action space that does not name its own.
        letter (`str`): Letter before the value in the short name of an action, such as `k` in `k050`.
        budget_range (`tuple` of 2 `float`): Range from which training draws its budgets.
        scale (`float`, *optional*, defaults to 1.0): value / scale is in ratio units.
        includes_lowest (`bool`, *optional*, defaults to `False`): Whether `lowest` itself is a value.
        is_integral (`bool`, *optional*, defaults to `False`): Whether levels are whole numbers.
        penalty_weight (`float`, *optional*, defaults to 100.0): Weight of the squared budget error in training.
        mean_over_largest (`bool`, *optional*, defaults to `False`): Whether the policy gets the mean so far divided by
            the largest level, as published for `mlp_keep`.
    """

    name: str
    dense: float
    lowest: float
    meaning: str
    default_levels: tuple[float, ...]
    letter: str
    budget_range: tuple[float, float]
    scale: float = 1.0
    includes_lowest: bool = False
    is_integral: bool = False
    penalty_weight: float = 100.0
    mean_over_largest: bool = False

    def __post_init__(self):
        if not self.name.isidentifier():
            raise ValueError(f"The name of an axis is used as a keyword, so {self.name!r} cannot be one.")
        if not 0 < self.dense / self.scale <= 1:
            raise ValueError(f"The dense value of `{self.name}` must be in (0, 1] in ratio units.")

    @property
    def interval(self) -> str:
        """The range of values as text: `(0, 1]`, `2..16`."""
        if self.is_integral:
            return f"{self.lowest:g}..{self.dense:g}"
        return f"{'[' if self.includes_lowest else '('}{self.lowest:g}, {self.dense:g}]"

    def contains(self, value: float) -> bool:
        """Whether a number is in the range of this axis; it need not be whole, since targets are averages."""
        above = value >= self.lowest if self.includes_lowest else value > self.lowest
        return math.isfinite(value) and above and value <= self.dense

    def check_values(self, values: Iterable[float]) -> None:
        """Raise [`BudgetError`] for a number outside of the range of this axis."""
        for value in values:
            if not self.contains(value):
                raise BudgetError(f"`{self.name}` must lie in {self.interval}, got {value}.")

    def check_levels(self, levels: Sequence[float]) -> None:
        """Raise a ValueError if these cannot be the levels of an action space."""
        if not levels:
            raise ValueError(f"`{self.name}` needs at least one level.")
        if len(set(levels)) != len(levels):
            raise ValueError(f"`{self.name}` has a repeated level: {list(levels)}.")
        self.check_values(levels)
        if self.is_integral and any(value != int(value) for value in levels):
            raise ValueError(f"`{self.name}` must be whole numbers, got {list(levels)}.")

    def tag(self, value: float) -> str:
        """Short name of a level, e.g. `k050` or `q08`."""
        return f"{self.letter}{int(value):02d}" if self.is_integral else f"{self.letter}{round(value * 100):03d}"


AXES: Registry[Axis] = Registry("axis")
"""All axes by name, the published three first."""


def register_axis(axis: Axis) -> Axis:
    """Register an axis. Its name is then a keyword of `SOLConfig`, `Budget` and `generate`.

    Args:
        axis ([`Axis`]): The axis.

    Raises:
        ValueError: if there is another axis of that name.
    """
    return AXES.register(axis.name, axis)


def axes_named(names: Iterable[str]) -> tuple[Axis, ...]:
    """The axes with the given names, in the same order.

    Raises:
        ValueError: for an unknown name.
    """
    return tuple(AXES[name] for name in names)


TOKEN_KEEP = register_axis(
    Axis(
        name="token_keep",
        dense=1.0,
        lowest=0.0,
        meaning="share of the cached tokens that attention reads",
        default_levels=tuple(percent / 100 for percent in range(10, 101, 10)),
        letter="k",
        budget_range=(0.1, 1.0),
    )
)
MLP_KEEP = register_axis(
    Axis(
        name="mlp_keep",
        dense=1.0,
        lowest=0.0,
        meaning="share of the MLP input channels that are kept",
        default_levels=tuple(percent / 100 for percent in range(40, 101, 5)),
        letter="s",
        budget_range=(0.4, 1.0),
        mean_over_largest=True,
    )
)
BITS = register_axis(
    Axis(
        name="bits",
        dense=16.0,
        lowest=2.0,
        includes_lowest=True,
        is_integral=True,
        scale=16.0,
        meaning="bit-width of the MLP outputs",
        default_levels=tuple(range(5, 17)),
        letter="q",
        budget_range=(5.0, 16.0),
        penalty_weight=200.0,
    )
)
NEURON_KEEP = register_axis(
    Axis(
        name="neuron_keep",
        dense=1.0,
        lowest=0.0,
        meaning="share of the MLP neurons that are kept",
        default_levels=tuple(percent / 100 for percent in range(30, 101, 10)),
        letter="n",
        budget_range=(0.4, 1.0),
    )
)
"""Not published: an action space has it only if levels of it are given."""
PUBLISHED_AXES = (TOKEN_KEEP, MLP_KEEP, BITS)
"""The axes of the published method, in the order of its action space."""
