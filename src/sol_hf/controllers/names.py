# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Makes controllers from their names, as given on a command line."""

from .base import Controller
from .registry import CONTROLLERS, HasPolicy


DENSE = "dense"
"""The name that stands for the base without a controller."""


def controller_names() -> tuple[str, ...]:
    """Names that [`make_controller`] accepts."""
    return (*CONTROLLERS, DENSE)


def parse_controller(spec: str) -> tuple[str, int]:
    """Split `name:number` into name and number, 0 without a number; see [`make_controller`].

    Raises:
        ValueError: for an unknown name, a number that is not a whole one, or a number where none is allowed.
    """
    if spec.strip() in CONTROLLERS:  # a name may have a colon itself
        return spec.strip(), 0
    name, colon, number = spec.strip().partition(":")
    if name == DENSE and not colon:
        return name, 0
    if name not in CONTROLLERS:
        raise CONTROLLERS.unknown(spec, also=(DENSE,))
    meaning = CONTROLLERS[name].number
    if colon and meaning is None:
        raise ValueError(f"Controller {spec!r}: `{name}` takes no number.")
    if colon and not number.isdecimal():
        raise ValueError(f"Controller {spec!r}: the {meaning} of `{name}` is a whole number, as in `{name}:7`.")
    return name, int(number) if colon else 0


def make_controller(spec: str, model: HasPolicy) -> Controller | None:
    """The controller of a name, such as `policy`, `fixed`, `random`, `random:7` (with a seed), `entropy`, `drift`.

    Args:
        spec (`str`): The name, of those registered with [`register_controller`], or `dense`.
        model ([`SOLForCausalLM`]): Its policy is the controller `policy`.

    Returns:
        [`Controller`], or `None` for `dense`, which is the base itself.

    Raises:
        ValueError: for an unknown name, or a number that is not allowed.
    """
    name, number = parse_controller(spec)
    return None if name == DENSE else CONTROLLERS[name].make(model, number)
