# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Expected costs of levels, and the allocation that follows from them."""

import pytest
import torch

from sol_hf.budget.action_space import ActionSpace
from sol_hf.episodes.cost_model import Allocation, fit_cost_model, level_costs
from sol_hf.episodes.counterfactuals import Probes


SPACE = ActionSpace([0.25, 0.5, 0.75, 1.0], [0.5, 1.0], [8])
PROBES = Probes.at(SPACE, {"token_keep": [0.25, 0.5], "mlp_keep": [0.5]})


def test_costs_go_down_with_the_level_and_meet_what_was_measured():
    token_keep, mlp_keep, bits = level_costs(torch.tensor([[0.8, 0.2, 0.1]]), PROBES, SPACE)
    assert token_keep.shape == (1, 4) and mlp_keep.shape == (1, 2) and bits.tolist() == [[0.0]]
    torch.testing.assert_close(token_keep[0, [0, 1, 3]], torch.tensor([0.8, 0.2, 0.0]))
    assert 0 < token_keep[0, 2] < 0.2
    torch.testing.assert_close(mlp_keep[0], torch.tensor([0.1, 0.0]))


def test_a_level_below_all_measured_ones_costs_more_than_they_do():
    probes = Probes.at(SPACE, {"token_keep": [0.5, 0.75], "mlp_keep": [0.5]})
    (rising, falling), _, _ = level_costs(torch.tensor([[0.2, 0.1, 0.1], [0.1, 0.2, 0.1]]), probes, SPACE)
    torch.testing.assert_close(rising, torch.tensor([0.4, 0.2, 0.1, 0.0]))
    torch.testing.assert_close(falling, torch.tensor([0.1, 0.1, 0.2, 0.0]))


def test_an_axis_that_was_not_measured_is_an_error():
    probes = Probes.at(SPACE, {"token_keep": [0.25]})
    with pytest.raises(ValueError, match="No level of mlp_keep"):
        level_costs(torch.tensor([[0.5]]), probes, SPACE)


def test_the_model_learns_the_mean_of_what_it_sees():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(6000, 4, generator=generator)
    places = torch.arange(6000) % 2
    luck = -torch.rand(6000, 1, generator=generator).log()
    expected = torch.where(inputs[:, :1] > 0, 2.0, 0.1) * (1 + places[:, None])
    held_out = torch.arange(6000) >= 5000
    model, loss = fit_cost_model(inputs, places, expected * luck, held_out, steps=200)
    assert loss < 0.7
    found = model.costs(inputs[held_out], places[held_out])
    dear, late = inputs[held_out, 0] > 0, places[held_out] == 1
    assert abs(found[dear & ~late].mean() - 2.0) < 0.4 and abs(found[dear & late].mean() - 4.0) < 0.8
    assert found[~dear].mean() < 0.6


def test_an_allocation_meets_its_mean_and_is_cheaper_than_one_level_for_all():
    generator = torch.Generator().manual_seed(0)
    costs = torch.rand(4000, 3, generator=generator).sort(dim=-1, descending=True).values[:, [0, 1, 0]]
    tables = level_costs(costs, PROBES, SPACE)
    allocation = Allocation(tables, SPACE)
    wanted = torch.tensor([[0.5, 0.75, 0.5]]).expand(len(costs), 3)
    chosen = allocation.choose(tables, wanted)
    levels = allocation.levels[0][chosen[:, 0]]
    assert abs(levels.mean() - 0.5) < 0.02
    assert tables[0].gather(1, chosen[:, :1]).mean() < tables[0][:, 1].mean()
