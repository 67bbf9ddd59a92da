# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Changes to modules and configs that several bases may have in common."""

import threading
from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class SharedChange:
    """A change to an object that several bases may have, as wrappers around one model have its layers.

    The first that needs it makes it and the last that lets go undoes it, in whatever order and threads they come.

    Args:
        thing (`object`): What was changed; kept, so that nothing else gets its id.
        undo (`Callable`): Puts it back.
        holders (`int`): How many need the change.
    """

    thing: object
    undo: Callable[[], object]
    holders: int = 0


_CHANGES: dict[tuple[str, int], SharedChange] = {}


_CHANGES_LOCK = threading.RLock()


def is_changed(name: str, thing: object) -> bool:
    """Whether anybody holds a change to an object."""
    return (name, id(thing)) in _CHANGES


def change_once(name: str, thing: object, make: Callable[[], Callable[[], object]]) -> Callable[[], None]:
    """Make a change to an object, unless it is made already, and keep it.

    Args:
        name (`str`): Which change.
        thing (`object`): What is changed.
        make (`Callable`): Makes the change, and returns what undoes it.

    Returns:
        `Callable`: To be called once, when the change is no longer needed.
    """
    key = name, id(thing)
    with _CHANGES_LOCK:
        if key not in _CHANGES:
            _CHANGES[key] = SharedChange(thing, make())
        _CHANGES[key].holders += 1
    return lambda: _let_go(key)


def _let_go(key: tuple[str, int]) -> None:
    with _CHANGES_LOCK:
        change = _CHANGES[key]
        change.holders -= 1
        if change.holders == 0:
            del _CHANGES[key]
            change.undo()
