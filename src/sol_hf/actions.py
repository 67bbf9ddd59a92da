# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Actions and budgets: what a decode step may cost, and what a user is willing to pay on average.

An *action* is one point of a Cartesian grid over the three axes. Everything that counts compute does so in
*ratio units*: `token_keep`, `mlp_keep` and `bits / 16`, each in (0, 1]. Everything that a user reads or writes is in
*axis units*, where `bits` stays a number of bits.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import torch


AXES = ("token_keep", "mlp_keep", "bits")
MAX_BITS = 16
MIN_BITS = 2
AXIS_SCALE = (1.0, 1.0, float(MAX_BITS))
DENSE = (1.0, 1.0, float(MAX_BITS))

AxisTarget = float | int | Sequence[float] | torch.Tensor | None


class BudgetError(ValueError):
    """A budget that no schedule of the action space can satisfy, or that is malformed."""


def _check_axis_values(name: str, values: Iterable[float]) -> None:
    low, high = (MIN_BITS, MAX_BITS) if name == "bits" else (0.0, 1.0)
    for value in values:
        inside = low <= value <= high if name == "bits" else low < value <= high
        if not (math.isfinite(value) and inside):
            interval = f"{MIN_BITS}..{MAX_BITS}" if name == "bits" else "(0, 1]"
            raise BudgetError(f"`{name}` must lie in {interval}, got {value}.")


class ActionSpace:
    """The finite table of actions: the Cartesian product of three lists of levels, `bits` varying fastest.

    Args:
        token_keep (`Sequence[float]`): Fractions in (0, 1] of the cached tokens that attention reads.
        mlp_keep (`Sequence[float]`): Fractions in (0, 1] of the MLP input channels that are kept.
        bits (`Sequence[int]`): Bit-widths in 2..16 of the MLP output.

    Examples:

    ```python
    >>> from sol_hf import ActionSpace
    >>> space = ActionSpace([0.2, 1.0], [0.6, 1.0], [8, 16])
    >>> len(space), space.dense_id, space.tag(0)
    (8, 7, 'k020-s060-q08')
    ```
    """

    def __init__(self, token_keep: Sequence[float], mlp_keep: Sequence[float], bits: Sequence[int]):
        levels = {"token_keep": tuple(token_keep), "mlp_keep": tuple(mlp_keep), "bits": tuple(bits)}
        for name, values in levels.items():
            if not values:
                raise ValueError(f"`{name}` needs at least one level.")
            if len(set(values)) != len(values):
                raise ValueError(f"`{name}` has a repeated level: {list(values)}.")
            _check_axis_values(name, values)
        if any(value != int(value) for value in levels["bits"]):
            raise ValueError(f"`bits` must be whole numbers, got {list(bits)}.")
        self.levels = levels
        self.table = tuple(product(*levels.values()))
        self.values = torch.tensor(self.table, dtype=torch.float32)
        self.ratios = self.values / torch.tensor(AXIS_SCALE)
        self._on_device: dict[tuple[torch.device, str], torch.Tensor] = {}

    def __len__(self) -> int:
        return len(self.table)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ActionSpace) and self.table == other.table

    def __hash__(self) -> int:
        return hash(self.table)

    def __repr__(self) -> str:
        return "ActionSpace({})".format(", ".join(f"{name}={list(levels)}" for name, levels in self.levels.items()))

    @property
    def dense_id(self) -> int:
        """Id of (1.0, 1.0, 16) if present, else of the first action with `token_keep` 1.0, else 0."""
        for index, action in enumerate(self.table):
            if action == DENSE:
                return index
        return next((index for index, action in enumerate(self.table) if action[0] == 1.0), 0)

    def index(self, token_keep: float, mlp_keep: float, bits: int) -> int:
        """Id of the action with exactly these levels.

        Raises:
            ValueError: if a value is not a level of its axis.
        """
        wanted = (token_keep, mlp_keep, bits)
        for name, value in zip(AXES, wanted, strict=True):
            if value not in self.levels[name]:
                raise ValueError(f"{value} is not a level of `{name}`; the levels are {list(self.levels[name])}.")
        return self.table.index(wanted)

    def tag(self, action_id: int) -> str:
        """Short name of an action, e.g. `k050-s070-q08`."""
        token_keep, mlp_keep, bits = self.table[action_id]
        return f"k{round(token_keep * 100):03d}-s{round(mlp_keep * 100):03d}-q{int(bits):02d}"

    def min_ratio(self) -> torch.Tensor:
        """Smallest level of every axis, in ratio units, of shape `(3,)`."""
        return self.ratios.amin(0)

    def max_ratio(self) -> torch.Tensor:
        """Largest level of every axis, in ratio units, of shape `(3,)`."""
        return self.ratios.amax(0)

    def values_on(self, device: torch.device) -> torch.Tensor:
        """The table in axis units on `device`, of shape `(n_actions, 3)`; copied there once."""
        return self._table_on(device, "values")

    def ratios_on(self, device: torch.device) -> torch.Tensor:
        """The table in ratio units on `device`, of shape `(n_actions, 3)`; copied there once."""
        return self._table_on(device, "ratios")

    def _table_on(self, device: torch.device, name: str) -> torch.Tensor:
        key = (device, name)
        if key not in self._on_device:
            self._on_device[key] = getattr(self, name).to(device)
        return self._on_device[key]


@dataclass(frozen=True)
class Budget:
    """Targets for the average of every axis over an episode.

    An axis that is left at `None` is not under control: it stays dense.

    Args:
        token_keep (`float` or one per row, *optional*): Target in (0, 1].
        mlp_keep (`float` or one per row, *optional*): Target in (0, 1].
        bits (`float` or one per row, *optional*): Target in 2..16.

    Examples:

    ```python
    >>> from sol_hf import Budget
    >>> Budget(token_keep=0.5, bits=[8, 12]).rows
    2
    ```
    """

    token_keep: AxisTarget = None
    mlp_keep: AxisTarget = None
    bits: AxisTarget = None

    def __post_init__(self):
        rows = set()
        for name in AXES:
            values = self._as_tuple(name)
            object.__setattr__(self, name, values if values is None or len(values) > 1 else values[0])
            if values is not None:
                _check_axis_values(name, values)
                if len(values) > 1:
                    rows.add(len(values))
        if len(rows) > 1:
            raise BudgetError(f"The axes of a budget have different numbers of rows: {sorted(rows)}.")

    def _as_tuple(self, name: str) -> tuple[float, ...] | None:
        value = getattr(self, name)
        if value is None:
            return None
        if hasattr(value, "tolist"):  # tensors, and NumPy's arrays and scalars
            value = value.tolist()
        values = value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
        if not values or any(isinstance(x, bool) or not isinstance(x, int | float) for x in values):
            raise BudgetError(f"`{name}` must be a number, or one number per row, got {value!r}.")
        return tuple(values)

    @property
    def rows(self) -> int | None:
        """Number of rows that the budget was given for, `None` if it fits any number."""
        return next((len(v) for v in map(self._as_tuple, AXES) if v is not None and len(v) > 1), None)

    @property
    def controlled(self) -> tuple[bool, bool, bool]:
        """For every axis, whether a target was given."""
        return tuple(getattr(self, name) is not None for name in AXES)  # type: ignore[return-value]

    @property
    def dense_axes(self) -> frozenset[str]:
        """The axes that are not set, or at their dense value in every row."""
        given = [(name, self._as_tuple(name), dense) for name, dense in zip(AXES, DENSE, strict=True)]
        return frozenset(name for name, values, dense in given if values is None or all(v == dense for v in values))

    @property
    def is_dense(self) -> bool:
        """Whether every axis of every row is at its dense value (or not set)."""
        return len(self.dense_axes) == len(AXES)

    def check(self, space: ActionSpace, rows: int | None = None) -> None:
        """Raise [`BudgetError`] if no schedule over `space` can meet this budget for `rows` rows."""
        if rows is not None and self.rows not in (None, rows):
            raise BudgetError(f"The budget has {self.rows} rows, but the input has {rows}.")
        for name, dense in zip(AXES, DENSE, strict=True):
            values, smallest, largest = self._as_tuple(name), min(space.levels[name]), max(space.levels[name])
            if values is None and largest != dense:
                raise BudgetError(
                    f"`{name}` is not set, so it would stay dense ({dense:g}), but the largest level of the action "
                    f"space is {largest:g}: set `{name}`, or add the level {dense:g}."
                )
            if values is not None and min(values) < smallest:
                raise BudgetError(
                    f"`{name}`={min(values):g} is below the smallest level of the action space, {smallest:g}."
                )

    def targets(self, rows: int, device: torch.device | str = "cpu") -> torch.Tensor:
        """Targets in ratio units, dense where an axis is not set, of shape `(rows, 3)`.

        A budget for fewer rows is repeated, each row in turn, as `generate` expands its inputs for beams and
        returned sequences.
        """
        columns = []
        for name, dense, scale in zip(AXES, DENSE, AXIS_SCALE, strict=True):
            values = self._as_tuple(name) or (dense,)
            column = torch.tensor(values, dtype=torch.float32, device=device) / scale
            if rows % len(column):
                raise BudgetError(f"The budget has {len(column)} rows, but the input has {rows}.")
            columns.append(column.repeat_interleave(rows // len(column)))
        return torch.stack(columns, dim=-1)
