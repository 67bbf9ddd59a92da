# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The measured gain of a KV refresh as a function of levels."""

import pytest
import torch

from sol_hf.budget.axes import AXES
from sol_hf.execution.executors import EXECUTORS
from sol_hf.execution.plan import BITS_BACKENDS
from sol_hf.selection.criterion import CRITERIA
from sol_hf.selection.refresh_gain import RefreshGain
from sol_hf.selection.rule import SelectionRule


def test_between_measured_levels_it_is_interpolated_and_below_the_lowest_constant():
    gain = RefreshGain(((0.2, 0.4), (0.5, 0.1), (1.0, 0.0)))
    levels = torch.tensor([[0.1, 0.2, 0.35], [0.5, 0.75, 1.0]])
    torch.testing.assert_close(
        gain(levels), torch.tensor([[0.4, 0.4, 0.25], [0.1, 0.05, 0.0]], dtype=torch.float64), atol=1e-7, rtol=0
    )


def test_without_points_nothing_is_gained():
    assert RefreshGain()(torch.tensor([[0.1, 16.0]])).tolist() == [[0, 0]]


RULES = [SelectionRule(criterion=name) for name in CRITERIA] + [SelectionRule(anchor_pages=True)]


@pytest.mark.parametrize("bits_backend", BITS_BACKENDS)
@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("name", AXES)
def test_every_axis_gains_nothing_when_dense_and_no_less_at_lower_levels(name, rule, bits_backend):
    axis = AXES[name]
    gain = EXECUTORS[name].refresh_gain(rule, bits_backend)
    levels = [low for low, _ in gain.points]
    assert levels == sorted(set(levels)) and all(axis.contains(level) for level in levels)
    gains = gain(torch.linspace(axis.lowest + 1e-3, axis.dense, 50)[None])[0]
    assert gains[-1] == 0 and bool((gains.diff() <= 0).all())
