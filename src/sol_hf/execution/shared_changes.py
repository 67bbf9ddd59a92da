# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Changes to modules and configs that several bases may share."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class SharedChange:
    """A change to an object that several bases may share, for example the layers of a model with several wrappers.

    It is made for the first user and undone after the last one. Users may be in different threads.

    Args:
        thing (`object`): The changed object. The reference ensures that no other object gets its id.
        undo (`Callable`): Undoes the change.
        holders (`int`): Number of current users.
    """

    thing: object
    undo: Callable[[], object]
    holders: int = 0


_CHANGES: dict[tuple[str, int], SharedChange] = {}


_CHANGES_LOCK = threading.RLock()


def is_changed(name: str, thing: object) -> bool:
    """Whether a change to an object is in force."""
    return (name, id(thing)) in _CHANGES


@contextmanager
def no_changes() -> Iterator[None]:
    """Within the block, no other thread makes or undoes a change."""
    with _CHANGES_LOCK:
        yield


def change_once(name: str, thing: object, make: Callable[[], Callable[[], object]]) -> Callable[[], None]:
    """Make a change to an object, unless it is in force already, and count one more user.

    Args:
        name (`str`): Kind of change.
        thing (`object`): The object to change.
        make (`Callable`): Makes the change, and returns a function that undoes it.

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
