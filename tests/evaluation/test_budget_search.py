# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Budgets that a measurement finds: there the fixed schedule costs neither nothing nor all."""

import pytest
import torch

from sol_hf import evaluate_budgets
from sol_hf.evaluation.budget_search import AxisCosts, find_budgets
from support.bases import tiny_base
from support.cases import SETTINGS, control


CONTEXT, STEPS = 20, SETTINGS["episode_length"]


def test_the_fixed_schedule_costs_what_was_asked_for():
    model = control(tiny_base("llama"), budget_prior=True)
    blocks = torch.randint(3, 99, (4, CONTEXT + STEPS + 1), generator=torch.Generator().manual_seed(4))
    budgets = find_budgets(model, blocks, CONTEXT, number=3, least=0.001, most=0.05)
    assert len(set(budgets)) == 3
    for found in evaluate_budgets(model, blocks, CONTEXT, budgets):
        assert 0.001 <= sum(found.fixed_divergences) / 4 <= 0.05
    with pytest.raises(ValueError, match="Only .* budgets were found .* 100 to 200 nats .* give `--budgets`"):
        find_budgets(model, blocks, CONTEXT, number=2, least=100, most=200)


def test_a_target_between_levels_costs_what_lies_between():
    costs = AxisCosts((0.2, 0.5, 1.0), (0.9, 0.3, 0.0))
    assert [costs.target_for(x) for x in (2, 0.9, 0.6, 0.3, 0.15, 0)] == pytest.approx([0.2, 0.2, 0.35, 0.5, 0.75, 1])
