# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The registry of controllers, for command lines, sweeps and tables. Every controller registers itself in its file."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ..modeling_sol_policy import SOLPolicyModel
from ..registry import Registry
from .base import Controller


class HasPolicy(Protocol):
    """An object with a policy from which controllers are made: a [`SOLForCausalLM`]."""

    policy: SOLPolicyModel


@dataclass(frozen=True)
class ControllerKind:
    """A registered controller: how to make it from its name.

    Args:
        make (`Callable`): `make(model, number)` returns a new [`Controller`]; `number` is the one after the colon in
            `name:number`, 0 without one.
        number (`str`, *optional*): Meaning of the number after the colon, such as `"seed"`. `None` if a number is not
            allowed.
    """

    make: Callable[[HasPolicy, int], Controller]
    number: str | None = None


CONTROLLERS: Registry[ControllerKind] = Registry("controller", package=__package__)
"""All controllers by name."""


def register_controller(
    name: str, make: Callable[[HasPolicy, int], Controller], number: str | None = None
) -> ControllerKind:
    """Register a controller, so that `make_controller`, the command line, sweeps, lm-eval and plots accept its name.

    Args:
        name (`str`): The name.
        make (`Callable`): See [`ControllerKind`].
        number (`str`, *optional*): See [`ControllerKind`].

    Raises:
        ValueError: if the name is taken.
    """
    return CONTROLLERS.register(name, ControllerKind(make, number))
