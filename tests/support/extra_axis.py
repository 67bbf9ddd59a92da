# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A fourth axis, as another package would register it."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from sol_hf import ActionSpace, Axis, register_axis
from sol_hf.budget.axes import AXES


MLP_NOISE = Axis(
    name="mlp_noise",
    dense=1.0,
    lowest=0.0,
    meaning="share of the MLP outputs without noise",
    default_levels=(0.5, 1.0),
    letter="n",
    budget_range=(0.5, 1.0),
)
FOUR_LEVELS: dict[str, list] = {
    "token_keep": [0.2, 0.6, 1.0],
    "mlp_keep": [0.5, 1.0],
    "bits": [4, 8, 16],
    "mlp_noise": [0.5, 1.0],
}


@contextmanager
def registered(axis: Axis = MLP_NOISE) -> Iterator[Axis]:
    """An axis is known within the block, and no longer after it."""
    register_axis(axis)
    try:
        yield axis
    finally:
        AXES.unregister(axis.name)


@pytest.fixture
def mlp_noise() -> Iterator[Axis]:
    """The axis `mlp_noise` is registered during the test."""
    with registered() as axis:
        yield axis


def four_axes() -> ActionSpace:
    """A space of 36 actions over the published axes and `mlp_noise`, which has to be registered."""
    return ActionSpace.of(FOUR_LEVELS)
