# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The action space: a finite table of the actions that a decode step can take.

An *action* is one point of a Cartesian grid over the axes of its space, in their order, the last varying fastest:

    token_keep [.2, 1] x mlp_keep [.6, 1] x bits [8, 16]      id 0 = (.2, .6, 8), 1 = (.2, .6, 16), 2 = (.2, 1, 8) ...

Compute is counted in ratio units. Values that people read or write are in axis units: see [`Axis`].
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from itertools import product

import numpy as np
import torch

from .axes import PUBLISHED_AXES, Axis, axes_named


MOST_LEVELS, MOST_ACTIONS = 1_000, 65_536
"""Limits of an action space, which is a table in memory. The published grid has 1,560 actions."""


class ActionSpace:
    """The actions: the Cartesian product of the levels of some axes, the last axis varying fastest.

    Args:
        token_keep (`Sequence[float]`): Fractions in (0, 1] of the cached tokens that attention reads.
        mlp_keep (`Sequence[float]`): Fractions in (0, 1] of the MLP input channels that are kept.
        bits (`Sequence[int]`): Bit-widths in 2..16 of the MLP output.
        further: Levels of axes that were added with [`register_axis`], by name.

    Raises:
        ValueError: for levels that an axis cannot have, more than 1,000 of one axis, or more than 65,536 actions.

    Examples:

    ```python
    >>> from sol_hf import ActionSpace
    >>> space = ActionSpace([0.2, 1.0], [0.6, 1.0], [8, 16])
    >>> len(space), space.dense_id, space.tag(0)
    (8, 7, 'k020-s060-q08')
    ```
    """

    def __init__(
        self,
        token_keep: Sequence[float],
        mlp_keep: Sequence[float],
        bits: Sequence[int],
        **further: Sequence[float],
    ):
        given = dict(zip((axis.name for axis in PUBLISHED_AXES), (token_keep, mlp_keep, bits), strict=True)) | further
        self.axes: tuple[Axis, ...] = axes_named(given)
        check_size({axis.name: len(given[axis.name]) for axis in self.axes})
        self.levels = {axis.name: tuple(given[axis.name]) for axis in self.axes}
        self.spent = dict(self.levels)
        """What a step at each level spends, by which budgets are kept: the level, unless changed by `spending`."""
        for axis in self.axes:
            axis.check_levels(self.levels[axis.name])
        self.table = tuple(product(*self.levels.values()))
        self.values = torch.tensor(self.table, dtype=torch.float32)
        self.scales = torch.tensor([axis.scale for axis in self.axes])
        self.ratios = self.values / self.scales
        self._on_device: dict[tuple[torch.device, str], torch.Tensor] = {}

    def __len__(self) -> int:
        return len(self.table)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ActionSpace) and tuple(self.levels.items()) == tuple(other.levels.items())

    def __hash__(self) -> int:
        return hash(tuple(self.levels.items()))

    def __copy__(self) -> "ActionSpace":
        """A space with tables of its own, for code that may edit them."""
        space = object.__new__(type(self))
        vars(space).update(vars(self), levels=dict(self.levels), spent=dict(self.spent))
        space.values, space.scales, space.ratios = self.values.clone(), self.scales.clone(), self.ratios.clone()
        space._on_device = {key: table.clone() for key, table in self._on_device.items()}
        return space

    def __reduce__(self) -> tuple:
        return type(self).of, (self.levels, self.spent)  # the tables are made again, on the CPU

    def __repr__(self) -> str:
        return "ActionSpace({})".format(", ".join(f"{name}={list(levels)}" for name, levels in self.levels.items()))

    @property
    def axis_names(self) -> tuple[str, ...]:
        """Names of the axes, in the order of the columns of `values` and `ratios`."""
        return tuple(self.levels)

    def spending(self, axis: str, spent: Callable[[float], float]) -> "ActionSpace":
        """The same actions in a computation in which an axis spends `spent(level)` at each of its levels.

        `values` and `ratios`, by which budgets are kept and averages are reported, are of what is spent.
        """
        return type(self).of(self.levels, {**self.spent, axis: tuple(spent(level) for level in self.levels[axis])})

    @property
    def level_counts(self) -> tuple[int, ...]:
        """Number of levels of every axis."""
        return tuple(len(levels) for levels in self.levels.values())

    @cached_property
    def level_ratios(self) -> tuple[np.ndarray, ...]:
        """Per axis what its levels spend in ratio units, `(levels,)`, as in `ratios`."""
        columns = zip(self.spent.values(), self.scales.unbind(), strict=True)
        return tuple((torch.tensor(spent, dtype=torch.float32) / scale).numpy() for spent, scale in columns)

    @property
    def mean_divisors(self) -> tuple[float, ...]:
        """Per axis the divisor of the mean that the policy sees: its largest ratio if `mean_over_largest`, else 1."""
        return tuple(max(self.spent[axis.name]) / axis.scale if axis.mean_over_largest else 1.0 for axis in self.axes)

    @property
    def dense(self) -> tuple[float, ...]:
        """The dense value of every axis, in axis units; it need not be a level."""
        return tuple(axis.dense for axis in self.axes)

    @property
    def has_dense(self) -> bool:
        """Whether the dense value of every axis is one of its levels."""
        return self.largest == self.dense

    @property
    def largest(self) -> tuple[float, ...]:
        """What the largest level of every axis spends, in axis units."""
        return tuple(max(spent) for spent in self.spent.values())

    @cached_property
    def dense_id(self) -> int:
        """Id of the dense action; in a space that has none, of the largest level of every axis.

        Steps that cannot be controlled take it.
        """
        return self.table.index(tuple(max(levels) for levels in self.levels.values()))

    def index(self, *levels: float, **by_name: float) -> int:
        """Id of the action with exactly these levels, in the order of the axes or by name.

        Raises:
            ValueError: if a value is not a level of its axis, or an axis is left out or given twice.
        """
        wanted = dict(zip(self.levels, levels, strict=False))
        if len(levels) > len(self.levels) or wanted.keys() & by_name.keys():
            raise ValueError(f"Give every axis one level: {', '.join(self.levels)}.")
        wanted |= by_name
        if wanted.keys() != self.levels.keys():
            raise ValueError(f"An action has a level of every axis ({', '.join(self.levels)}), got {wanted}.")
        for name, value in wanted.items():
            if value not in self.levels[name]:
                raise ValueError(f"{value} is not a level of `{name}`; the levels are {list(self.levels[name])}.")
        return self.table.index(tuple(wanted[name] for name in self.levels))

    def tag(self, action_id: int) -> str:
        """Short name of an action, e.g. `k050-s070-q08`."""
        return "-".join(axis.tag(value) for axis, value in zip(self.axes, self.table[action_id], strict=True))

    def column(self, axis: str) -> int:
        """Index of an axis among the columns of `values` and `ratios`."""
        return self.axis_names.index(axis)

    def by_axis(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        """The columns of `values` `(..., axes)` by axis name, each of shape `(...)`."""
        return dict(zip(self.levels, values.unbind(dim=-1), strict=True))

    def level_indices(self, action_ids: torch.Tensor) -> torch.Tensor:
        """Per axis the index of an action's level: ids `(...)` to indices `(..., axes)`."""
        indices = []
        for count in reversed(self.level_counts):
            indices.append(action_ids % count)
            action_ids = torch.div(action_ids, count, rounding_mode="floor")
        return torch.stack(indices[::-1], dim=-1)

    def ids_of(self, level_indices: torch.Tensor) -> torch.Tensor:
        """Ids of actions from the indices of their levels, `(..., axes)` to `(...)`."""
        strides = [math.prod(self.level_counts[place + 1 :]) for place in range(len(self.level_counts))]
        return (level_indices * torch.tensor(strides, device=level_indices.device)).sum(dim=-1)

    def min_ratio(self) -> torch.Tensor:
        """Smallest level of every axis, in ratio units, of shape `(axes,)`."""
        return self.ratios.amin(0)

    def max_ratio(self) -> torch.Tensor:
        """Largest level of every axis, in ratio units, of shape `(axes,)`."""
        return self.ratios.amax(0)

    def values_on(self, device: torch.device) -> torch.Tensor:
        """The table in axis units on `device`, of shape `(n_actions, axes)`; copied there once."""
        return self._table_on(device, "values")

    def ratios_on(self, device: torch.device) -> torch.Tensor:
        """The table in ratio units on `device`, of shape `(n_actions, axes)`; copied there once."""
        return self._table_on(device, "ratios")

    def levels_on(self, device: torch.device) -> tuple[torch.Tensor, ...]:
        """The levels of every axis in ratio units on `device`, ascending, each `(levels,)`; copied there once."""
        for name, column in zip(self.levels, self.ratios.unbind(dim=-1), strict=True):
            if (device, f"levels of {name}") not in self._on_device:
                self._on_device[device, f"levels of {name}"] = column.unique().to(device)
        return tuple(self._on_device[device, f"levels of {name}"] for name in self.levels)

    def _table_on(self, device: torch.device, name: str) -> torch.Tensor:
        key = (device, name)
        if key not in self._on_device:
            self._on_device[key] = getattr(self, name).to(device)
        return self._on_device[key]

    @classmethod
    def of(
        cls, levels: Mapping[str, Sequence[float]], spent: Mapping[str, tuple[float, ...]] | None = None
    ) -> "ActionSpace":
        """The action space of levels by axis name; the published axes must be among them.

        `spent` are what steps at these levels spend, by axis name, if not the levels themselves.
        """
        space = cls(**levels)  # type: ignore[arg-type]
        if spent is not None and dict(spent) != space.levels:
            space.spent = dict(spent)
            space.values = torch.tensor(tuple(product(*space.spent.values())), dtype=torch.float32)
            space.ratios = space.values / space.scales
        return space


def check_size(counts: Mapping[str, int]) -> None:
    """Raise a ValueError if an action space with these numbers of levels per axis would be too large."""
    for name, count in counts.items():
        if count > MOST_LEVELS:
            raise ValueError(f"`{name}` must have at most {MOST_LEVELS:,} levels, got {count:,}.")
    actions = math.prod(counts.values())
    if actions > MOST_ACTIONS:
        numbers = ", ".join(f"{count:,} of `{name}`" for name, count in counts.items())
        raise ValueError(
            f"The action space would have {actions:,} actions ({numbers} levels), but at most {MOST_ACTIONS:,} are "
            "allowed: give fewer levels."
        )


@lru_cache(maxsize=16)
def shared_action_space(levels: tuple[tuple[Axis, tuple[float, ...]], ...]) -> ActionSpace:
    """The action space of levels by axis. Its tables are made once: every call asks a config for them."""
    return ActionSpace.of({axis.name: values for axis, values in levels})
