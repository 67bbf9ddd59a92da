# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Controllers by name, for command lines and tables."""

import difflib
from typing import Protocol

from ..modeling_sol_policy import SOLPolicyModel
from .base import Controller
from .drift import DriftController
from .entropy import EntropyController
from .fixed import FixedController
from .policy import PolicyController
from .random import RandomController


CONTROLLER_NAMES = ("policy", "fixed", "random", "entropy", "drift", "dense")


class HasPolicy(Protocol):
    """What [`make_controller`] needs of a [`SOLForCausalLM`]."""

    policy: SOLPolicyModel


def parse_controller(spec: str) -> tuple[str, int]:
    """Name and seed of a controller's name; see [`make_controller`]."""
    name, colon, seed = spec.strip().partition(":")
    if name not in CONTROLLER_NAMES:
        near = difflib.get_close_matches(name, CONTROLLER_NAMES, n=2, cutoff=0.5)
        hint = f" Did you mean {' or '.join(repr(match) for match in near)}?" if near else ""
        raise ValueError(f"Unknown controller {spec!r}: it must be one of {', '.join(CONTROLLER_NAMES)}.{hint}")
    if colon and (name != "random" or not seed.isdecimal()):
        raise ValueError(f"Controller {spec!r}: only `random` takes a seed, a whole number, as in `random:7`.")
    return name, int(seed) if colon else 0


def make_controller(spec: str, model: HasPolicy) -> Controller | None:
    """The controller of a name: `policy`, `fixed`, `random`, `random:SEED`, `entropy`, `drift`, or `dense`.

    Args:
        spec (`str`): The name.
        model ([`SOLForCausalLM`]): Whose policy `policy` is.

    Returns:
        [`Controller`], or `None` for `dense`, which is the base itself.

    Raises:
        ValueError: for another name, or a seed that is no whole number.
    """
    name, seed = parse_controller(spec)
    if name == "policy":
        return PolicyController(model.policy)
    if name == "random":
        return RandomController(seed)
    baselines = {"fixed": FixedController, "entropy": EntropyController, "drift": DriftController}
    return baselines[name]() if name in baselines else None
