# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Probes, measured costs and allocations over an action space with a fourth axis."""

import pytest
import torch

from sol_hf import Axis
from sol_hf.episodes.cost_model import Allocation, fall_above, level_costs
from sol_hf.episodes.counterfactuals import Probes, measure
from support.extra_axis import FOUR_LEVELS, four_axes
from support.fourth_axis_runs import four_axis_model, fourth_axis


def test_every_axis_is_probed(mlp_noise):
    space = four_axes()
    probes = Probes.of(space)
    assert probes.axes == (0, 0, 1, 2, 2, 3)
    assert probes.levels == pytest.approx((0.2, 0.6, 0.5, 0.25, 0.5, 0.5))
    assert [space.table[action] for action in probes.actions.tolist()][-1] == (1.0, 1.0, 16, 0.5)


def test_costs_and_allocations_have_a_table_per_axis(mlp_noise):
    space = four_axes()
    probes = Probes.of(space)
    costs = torch.rand(50, len(probes.actions), generator=torch.Generator().manual_seed(0)) + 0.1
    tables = level_costs(costs, probes, space)
    assert [table.shape for table in tables] == [(50, len(levels)) for levels in FOUR_LEVELS.values()]
    torch.testing.assert_close(tables[3][:, 0], costs[:, 5])
    assert (tables[3][:, 1] == 0).all()
    allocation = Allocation(tables, space)
    chosen = allocation.choose(tables, torch.tensor([[0.5, 0.7, 0.5, 0.7]]).expand(50, 4))
    assert chosen.shape == (50, 4)
    assert abs(allocation.levels[3][chosen[:, 3]].mean() - 0.7) < 0.03


def test_costs_fall_with_the_kind_of_axis(mlp_noise):
    layers = Axis("layers", 32, 0, "decoder layers", (8, 32), "l", (8, 32), scale=32, is_integral=True)
    assert fall_above(layers, 2 / 32) == pytest.approx(2 * torch.tensor(4.0).log().item())
    assert fall_above(mlp_noise, 0.1) == fall_above(mlp_noise, 0.5) == 3.0


def test_a_probe_of_the_fourth_axis_is_run():
    with fourth_axis():
        model = four_axis_model()
        blocks = torch.randint(1, 99, (2, 25), generator=torch.Generator().manual_seed(5))
        probes = Probes.at(model.action_space, {"mlp_noise": [0.5]})
        found = measure(model, blocks, 20, probes, torch.full((2, 4), model.action_space.dense_id))
    assert found.divergence.shape == (2, 4, 1) and (found.divergence > 1e-3).all()
