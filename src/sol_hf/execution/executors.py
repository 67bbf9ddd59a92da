# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""How an axis is put into effect on a base: one executor class per axis, one instance per base.

An executor names the *parts* of the base that carry out its axis. In a step with a plan for the axis, each of them
does what the plan says and calls `plan.mark_done(axis, part)`: see [`StepPlan`].
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from transformers import PreTrainedModel

from ..cache.sol_cache import SOLCache
from ..registry import Registry
from .step_part import StepPart


@dataclass(frozen=True)
class Change:
    """Something that is done to a base while at least one generation runs.

    Args:
        name (`str`): What kind of change; two changes of the same name to the same object are made once.
        thing (`object`): What is changed: a module, a config.
        make (`Callable`): Makes the change, and returns what undoes it.
    """

    name: str
    thing: object
    make: Callable[[], Callable[[], object]]


class AxisExecutor:
    """Base class: puts one axis into effect on one base.

    Making one looks for the parts, without changing the base.

    Args:
        base (`PreTrainedModel`): The base. An executor must not keep it, or it would never be freed; its modules are
            fine.

    Class attributes:
        auto_refresh_below (`float`, *optional*): With `kv_refresh="auto"`, an episode is refreshed if the mean of this
            axis over a row's steps is below this level, in axis units; without it the axis calls for no refresh.

    Raises:
        UnsupportedAxisError: if the axis cannot be controlled on this base; the message says why.
    """

    auto_refresh_below: ClassVar[float | None] = None

    def __init__(self, base: PreTrainedModel):
        raise NotImplementedError

    def changes(self) -> Iterable[Change]:
        """What is done to the base while a generation runs."""
        raise NotImplementedError

    def parts(self, cache: SOLCache) -> Mapping[Hashable, str]:
        """The parts that carry out the axis over a cache: what each marks itself with, and its name for people."""
        raise NotImplementedError

    def layers(self, cache: SOLCache) -> Sequence[int]:
        """Decoder layers that the axis reaches, for [`Coverage`]."""
        raise NotImplementedError

    def check_backend(self, bits_backend: str) -> None:
        """Raise [`UnsupportedAxisError`] if the base cannot run with this `bits_backend`; by default it can."""

    def check_cache(self, cache: SOLCache, name: str) -> None:
        """Raise [`UnsupportedAxisError`] if caches of this kind, of a base class called `name`, do not allow the axis.

        By default all do.
        """

    @property
    def step_parts(self) -> Sequence[StepPart]:
        """The parts that take the place of a module's forward, which may hold copies of weights."""
        return ()


EXECUTORS: Registry[type[AxisExecutor]] = Registry("axis", package=f"{__package__}.axes")
"""Executor classes by the name of their axis."""


def register_executor(axis: str) -> Callable[[type], type]:
    """Decorator: make a subclass of [`AxisExecutor`] the executor of an axis.

    Args:
        axis (`str`): Name of the axis, see [`register_axis`].

    Raises:
        ValueError: if the axis has an executor already.
    """
    return EXECUTORS.registered(axis)
