# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The axes that a config names, or has levels of."""

from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any

from .axes import AXES, PUBLISHED_AXES, Axis


def find_axes(
    names: Iterable[str] | None, given: Mapping[str, Any], taken_names: Callable[[], Set[str]]
) -> tuple[Axis, ...]:
    """The axes of an action space: `names` if given, else the published axes and all others that have levels.

    Args:
        names (`Iterable[str]`, *optional*): Names of all axes, the published ones first.
        given (`Mapping[str, Any]`): Levels by axis.
        taken_names (`Callable`): Names that an axis cannot have, since they mean something else.

    Raises:
        ValueError: for an axis that is not registered, not named, named twice, or has a name that is taken.
    """
    published = [axis.name for axis in PUBLISHED_AXES]
    further = [name for name, levels in given.items() if levels is not None and name not in published]
    names = [*published, *further] if names is None else list(names)
    for name in names:
        if name not in AXES:
            raise ValueError(
                f"The action space of this config has the axis `{name}`, which is not registered: import the package "
                "that registers it first (see `register_axis`)."
            )
    if names[: len(published)] != published or len(set(names)) != len(names):
        raise ValueError(f"`axes` must begin with {', '.join(published)} and name every axis once, got {names}.")
    unnamed = set(further) - set(names)
    if unnamed:
        raise ValueError(
            f"There are levels of {', '.join(sorted(unnamed))}, but `axes` names only {', '.join(names)}."
        )
    added = names[len(published) :]
    taken = taken_names() if added else frozenset()
    for name in added:
        if name in taken:
            raise ValueError(
                f"An axis cannot be named `{name}`: SOLConfig, Budget or `generate` use that name for something else."
            )
    return tuple(AXES[name] for name in names)
