# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Controllers by name, for command lines, sweeps and tables: every controller registers itself in its own file."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ..modeling_sol_policy import SOLPolicyModel
from ..registry import Registry
from .base import Controller


class HasPolicy(Protocol):
    """What a controller may be made from: a [`SOLForCausalLM`]."""

    policy: SOLPolicyModel


@dataclass(frozen=True)
class ControllerKind:
    """How a controller of a name is made.

    Args:
        make (`Callable`): `make(model, number)` gives a fresh [`Controller`]; `number` is what stood after the colon
            of the name, 0 if nothing did.
        number (`str`, *optional*): What a number after the colon means, such as `"seed"`; without it none is allowed.
    """

    make: Callable[[HasPolicy, int], Controller]
    number: str | None = None


CONTROLLERS: Registry[ControllerKind] = Registry("controller", package=__package__)
"""All controllers by name."""


def register_controller(
    name: str, make: Callable[[HasPolicy, int], Controller], number: str | None = None
) -> ControllerKind:
    """Make a controller known by name to `make_controller`, the command line, sweeps, lm-eval and plots.

    Args:
        name (`str`): The name.
        make (`Callable`): See [`ControllerKind`].
        number (`str`, *optional*): See [`ControllerKind`].

    Raises:
        ValueError: if the name is taken.
    """
    return CONTROLLERS.register(name, ControllerKind(make, number))
