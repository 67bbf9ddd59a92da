# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Objects that are found by name: axes, criteria, controllers, fast paths.

There is one [`Registry`] per kind of object. Every member has a file of its own, which registers it. A registry with a
`package` imports all modules of that package at the first lookup, so no list has to be changed for a new file. Members
from other packages register themselves when they are imported.
"""

import difflib
import pkgutil
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Generic, TypeVar


T = TypeVar("T")


class Registry(Generic[T]):
    """Members of one kind by name, in the order in which they were registered.

    Args:
        kind (`str`): Kind of the members, for messages, such as `"criterion"`.
        package (`str`, *optional*): Dotted name of the package whose modules register the members.

    Examples:

    ```python
    >>> from sol_hf.registry import Registry
    >>> shapes = Registry("shape")
    >>> shapes.register("square", 4)
    4
    >>> shapes["square"], list(shapes)
    (4, ['square'])
    ```
    """

    def __init__(self, kind: str, package: str | None = None):
        self.kind, self._package = kind, package
        self._members: dict[str, T] = {}

    def register(self, name: str, member: T) -> T:
        """Add a member, and return it.

        Raises:
            ValueError: if the name is taken.
        """
        if name in self._members and self._members[name] is not member:
            raise ValueError(f"The {self.kind} {name!r} exists already: choose another name.")
        self._members[name] = member
        return member

    def registered(self, name: str) -> Callable[[type], type]:
        """Decorator that registers a class under `name`."""

        def decorate(member: type) -> type:
            self.register(name, member)  # type: ignore[arg-type]
            return member

        return decorate

    def unregister(self, name: str) -> None:
        """Remove a member, as tests do."""
        del self._members[name]

    def __getitem__(self, name: str) -> T:
        """The member of a name.

        Raises:
            ValueError: for an unknown name; the message lists the known ones and the nearest.
        """
        if self._package is not None:
            self._import_modules()
        if name not in self._members:
            raise self.unknown(name)
        return self._members[name]

    def unknown(self, name: object, also: tuple[str, ...] = ()) -> ValueError:
        """The error for an unknown name. `also` lists names that are valid for the caller but are not members."""
        known = [*self, *also]
        near = difflib.get_close_matches(str(name), known, n=2, cutoff=0.5)
        hint = f" Did you mean {' or '.join(repr(match) for match in near)}?" if near else ""
        return ValueError(f"Unknown {self.kind} {name!r}: it must be one of {', '.join(known)}.{hint}")

    def __contains__(self, name: object) -> bool:
        self._import_modules()
        return name in self._members

    def __iter__(self) -> Iterator[str]:
        self._import_modules()
        return iter(list(self._members))

    def __len__(self) -> int:
        self._import_modules()
        return len(self._members)

    def items(self) -> list[tuple[str, T]]:
        """Names and members."""
        self._import_modules()
        return list(self._members.items())

    def _import_modules(self) -> None:
        if self._package is None:
            return
        package, self._package = import_module(self._package), None
        for module in pkgutil.iter_modules(package.__path__):
            import_module(f"{package.__name__}.{module.name}")
