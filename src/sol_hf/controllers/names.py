# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""From the name of a controller, as command lines have it, to the controller."""

from .base import Controller
from .registry import CONTROLLERS, HasPolicy


DENSE = "dense"
"""The name that stands for the base without a controller."""


def controller_names() -> tuple[str, ...]:
    """Names that [`make_controller`] knows."""
    return (*CONTROLLERS, DENSE)


def parse_controller(spec: str) -> tuple[str, int]:
    """Name and number of a controller's name; see [`make_controller`].

    Raises:
        ValueError: for an unknown name, or a number where there is none or that is not one.
    """
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
        model ([`SOLForCausalLM`]): Whose policy `policy` is.

    Returns:
        [`Controller`], or `None` for `dense`, which is the base itself.

    Raises:
        ValueError: for another name, or a number that is not one.
    """
    name, number = parse_controller(spec)
    return None if name == DENSE else CONTROLLERS[name].make(model, number)
