# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A budget: the average that each axis may reach, per row."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..errors import BudgetError
from .action_space import ActionSpace
from .axes import AXES, PUBLISHED_AXES


AxisTarget = float | int | Sequence[float] | torch.Tensor | None


class Budget:
    """Targets for the average of every axis over a call, or over an episode. A budget does not change once it is made.

    An axis at `None` is not controlled: it stays dense.

    Args:
        token_keep (`float` or one per row, *optional*): Target in (0, 1].
        mlp_keep (`float` or one per row, *optional*): Target in (0, 1].
        bits (`float` or one per row, *optional*): Target in 2..16.
        further: Targets of axes that were added with [`register_axis`], by name.

    Raises:
        BudgetError: for a target outside of the range of its axis, or axes with different numbers of rows.
        ValueError: for an unknown axis.

    Examples:

    ```python
    >>> from sol_hf import Budget
    >>> budget = Budget(token_keep=0.5, bits=[8, 12])
    >>> budget.rows, budget.bits, budget
    (2, (8, 12), Budget(token_keep=0.5, bits=(8, 12)))
    ```
    """

    __slots__ = ("_targets",)
    _targets: dict[str, tuple[float, ...]]

    def __init__(
        self,
        token_keep: AxisTarget = None,
        mlp_keep: AxisTarget = None,
        bits: AxisTarget = None,
        **further: AxisTarget,
    ):
        given = dict(zip((axis.name for axis in PUBLISHED_AXES), (token_keep, mlp_keep, bits), strict=True)) | further
        targets = {}
        for name, value in given.items():
            axis = AXES[name]  # without a target, too: the name may be misspelt
            if value is not None:
                targets[name] = _as_tuple(name, value)
                axis.check_values(targets[name])
        rows = {len(values) for values in targets.values()} - {1}
        if len(rows) > 1:
            raise BudgetError(f"The axes of a budget have different numbers of rows: {sorted(rows)}.")
        object.__setattr__(self, "_targets", targets)

    @classmethod
    def of(cls, targets: Mapping[str, AxisTarget]) -> "Budget":
        """The budget of targets by the names of the axes."""
        return cls(**targets)

    def __getattr__(self, name: str) -> float | tuple[float, ...] | None:
        """The target of an axis: one number, one per row, or `None`."""
        if name.startswith("_") or name not in AXES:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        values = self._targets.get(name)
        return values[0] if values is not None and len(values) == 1 else values

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"A budget does not change once it is made: make another instead of setting {name!r}.")

    def __delattr__(self, name: str) -> None:
        raise AttributeError("A budget does not change once it is made.")

    def __reduce__(self) -> tuple:
        return type(self).of, (self._targets,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Budget) and self._targets == other._targets

    def __hash__(self) -> int:
        return hash(frozenset(self._targets.items()))

    def __repr__(self) -> str:
        return "Budget({})".format(", ".join(f"{name}={getattr(self, name)}" for name in self._targets))

    @property
    def rows(self) -> int | None:
        """Number of rows that the budget was given for, `None` if it fits any number."""
        return next((len(values) for values in self._targets.values() if len(values) > 1), None)

    @property
    def controlled(self) -> frozenset[str]:
        """The axes that have a target."""
        return frozenset(self._targets)

    @property
    def is_dense(self) -> bool:
        """Whether every axis of every row is at its dense value (or not set)."""
        return all(value == AXES[name].dense for name, values in self._targets.items() for value in values)

    def leaves_dense(self, axis: str) -> bool:
        """Whether an axis is not set, or at its dense value in every row."""
        return all(value == AXES[axis].dense for value in self._targets.get(axis, ()))

    def check(self, space: ActionSpace, rows: int | None = None) -> None:
        """Raise [`BudgetError`] if no schedule over `space` can meet this budget for `rows` rows."""
        if rows is not None and self.rows not in (None, rows):
            raise BudgetError(f"The budget has {self.rows} rows, but the input has {rows}.")
        strange = self.controlled - set(space.levels)
        if strange:
            raise BudgetError(
                f"The action space has no axis {', '.join(f'`{name}`' for name in sorted(strange))}: its axes are "
                f"{', '.join(space.levels)}."
            )
        for axis in space.axes:
            levels, values = space.levels[axis.name], self._targets.get(axis.name)
            if values is None and max(levels) != axis.dense:
                raise BudgetError(
                    f"`{axis.name}` is not set, so it would stay dense ({axis.dense:g}), but the largest level of the "
                    f"action space is {max(levels):g}: set `{axis.name}`, or add the level {axis.dense:g}."
                )
            least = min(space.spent[axis.name])
            if values is not None and min(values) < least:
                what = "the smallest level of the action space"
                if least != min(levels):
                    what = f"what {what} ({min(levels):g}) is carried out with"
                raise BudgetError(f"`{axis.name}`={min(values):g} is below {what}, {least:g}.")

    def targets(self, rows: int, device: torch.device | str = "cpu", space: ActionSpace | None = None) -> torch.Tensor:
        """Targets in ratio units, dense where an axis is not set, of shape `(rows, axes)`.

        A budget for fewer rows is repeated, each row in turn, as `generate` expands its inputs for beams and
        returned sequences.

        Args:
            rows (`int`): Number of rows.
            device (`torch.device` or `str`, *optional*, defaults to `"cpu"`): Device of the result.
            space ([`ActionSpace`], *optional*): Its axes are the columns; the published three by default.
        """
        columns = []
        for axis in PUBLISHED_AXES if space is None else space.axes:
            values = self._targets.get(axis.name, (axis.dense,))
            column = torch.tensor(values, dtype=torch.float32, device=device) / axis.scale
            if rows % len(column):
                raise BudgetError(f"The budget has {len(column)} rows, but the input has {rows}.")
            columns.append(column.repeat_interleave(rows // len(column)))
        return torch.stack(columns, dim=-1)


def _as_tuple(name: str, value: Any) -> tuple[float, ...]:
    if hasattr(value, "tolist"):  # tensors, NumPy arrays and NumPy scalars
        value = value.tolist()
    values = value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    if not values or any(isinstance(x, bool) or not isinstance(x, int | float) for x in values):
        raise BudgetError(f"`{name}` must be a number, or one number per row, got {value!r}.")
    return tuple(values)
