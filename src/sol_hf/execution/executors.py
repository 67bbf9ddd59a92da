# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Executors, which apply an axis to a base: one executor class per axis, one instance per base.

An executor lists the *parts* of the base that carry out its axis. In a step with a plan for the axis, each part
applies the plan and then calls `plan.mark_done(axis, part)`: see [`StepPlan`].
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from ..cache.sol_cache import SOLCache
from ..registry import Registry
from ..selection.refresh_gain import RefreshGain
from ..selection.rule import SelectionRule
from .step_part import StepPart


@dataclass(frozen=True)
class Change:
    """A change to a base that lasts while at least one generation runs.

    Args:
        name (`str`): Kind of change. Changes of the same name to the same object are made once.
        thing (`object`): The object to change: a module or a config.
        make (`Callable`): Makes the change, and returns a function that undoes it.
    """

    name: str
    thing: object
    make: Callable[[], Callable[[], object]]


class AxisExecutor:
    """Base class of executors. An instance applies one axis to one base.

    The constructor finds the parts and does not change the base.

    Args:
        base (`PreTrainedModel`): The base. An executor must not hold a reference to it, or it would never be freed;
            references to its modules are allowed.

    Raises:
        UnsupportedAxisError: if the axis cannot be controlled on this base; the message says why.
    """

    def __init__(self, base: PreTrainedModel):
        raise NotImplementedError

    def changes(self) -> Iterable[Change]:
        """The changes to the base while a generation runs."""
        raise NotImplementedError

    def parts(self, cache: SOLCache) -> Mapping[Hashable, str]:
        """The parts that carry out the axis: the key of each for `mark_done`, and its name for messages."""
        raise NotImplementedError

    def layers(self, cache: SOLCache) -> Sequence[int]:
        """Decoder layers that the axis reaches, for [`Coverage`]."""
        raise NotImplementedError

    def check_backend(self, bits_backend: str, max_plane_bytes: int | None = None) -> None:
        """Make what this `bits_backend` needs, such as copies of weights; by default nothing.

        Args:
            bits_backend (`str`): See [`StepPlan`].
            max_plane_bytes (`int`, *optional*): Most bytes that planes of weights may take.

        Raises:
            UnsupportedAxisError: if the base cannot run with it.
            ValueError: if planes would take more bytes.
        """

    def parts_under(self, bits_backend: str, cache: SOLCache) -> Mapping[Hashable, str]:
        """The parts that carry out the axis under a `bits_backend`; by default [`parts`] under each."""
        return self.parts(cache)

    def check_cache(self, cache: SOLCache, name: str) -> None:
        """Raise [`UnsupportedAxisError`] if the axis cannot be used with this kind of cache; by default it can.

        `name` is the class name of the base, for the message.
        """

    @classmethod
    def refresh_gain(cls, rule: SelectionRule, bits_backend: str) -> RefreshGain:
        """What a KV refresh gains after steps at the levels of this axis; by default nothing.

        With `kv_refresh="auto"`, the gains of all axes decide which episodes are refreshed.

        Args:
            rule ([`SelectionRule`]): How keys are selected.
            bits_backend (`str`): See [`StepPlan`].
        """
        return RefreshGain()

    @property
    def step_parts(self) -> Sequence[StepPart]:
        """The parts that replace a module's forward; they may hold copies of weights."""
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
