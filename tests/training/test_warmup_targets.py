# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Targets of the supervised start: corrections of budgets, and episodes of the policy itself."""

import pytest
import torch

from sol_hf.controllers.policy import PolicyController
from sol_hf.episodes.rollouts import prefill, roll_out
from sol_hf.training.budget_states import BudgetStates
from sol_hf.training.warmup_targets import BudgetCorrection, run_on_policy
from support.cases import sol_model


LOWEST, HIGHEST = torch.tensor([0.1, 0.4, 5 / 16]), torch.ones(3)


def budgets(rows):
    return LOWEST + (HIGHEST - LOWEST) * torch.rand(rows, 3, generator=torch.Generator().manual_seed(5))


def test_a_correction_makes_up_for_what_is_overspent():
    correction, asked = BudgetCorrection(LOWEST, HIGHEST), budgets(400)

    def spend(wanted):
        """A policy that spends too much in the middle of an axis, more so for a larger budget on the last axis."""
        share = (wanted - LOWEST) / (HIGHEST - LOWEST)
        return wanted + 0.3 * share * (1 - share) * (0.5 + share[:, 2:])

    before = (spend(asked) - asked).abs().mean()
    for _ in range(3):
        error = correction.update(asked, spend(correction(asked)))
    after = (spend(correction(asked)) - asked).abs().mean()
    assert before > 0.03 and after < 0.005
    assert error.abs().max() < 0.01
    unseen = budgets(500)[400:]
    assert (spend(correction(unseen)) - unseen).abs().mean() < 0.006


def test_a_correction_leaves_the_ends_of_an_axis_alone():
    correction, asked = BudgetCorrection(LOWEST, HIGHEST), budgets(64)
    correction.update(asked, asked + 0.1)
    inside = (LOWEST + HIGHEST) / 2
    assert (correction(inside[None])[0] < inside - 0.05).all()
    assert torch.equal(correction(torch.stack([LOWEST, HIGHEST])), torch.stack([LOWEST, HIGHEST]))


@pytest.mark.parametrize("rows", (8, 3))
def test_on_policy_episodes_are_what_the_policy_does_on_these_blocks(rows):
    model = sol_model("llama", torch.float32)
    space, steps = model.action_space, model.config.episode_length
    blocks = torch.randint(3, 99, (5, 12 + steps + 6), generator=torch.Generator().manual_seed(2))
    torch.manual_seed(3)
    lowest, highest = space.ratios.min(dim=0).values, space.ratios.max(dim=0).values
    targets = lowest + (highest - lowest) * torch.rand(rows, 3)
    soft = BudgetStates(space, steps, False, "generation")
    episodes = run_on_policy(model, blocks, 12, targets, soft, batch_size=4)
    assert torch.equal(episodes.rollouts.targets, targets) and episodes.rollouts.actions.shape == (rows, steps)
    assert torch.allclose(episodes.spent(space), space.ratios[episodes.rollouts.actions].mean(dim=1))
    row = rows - 1
    context = 12 + int(episodes.starts[row])
    alone = blocks[episodes.blocks[row], None, : context + steps + 1]
    again = roll_out(model, prefill(model, alone, context), alone, targets[row:], PolicyController(model.policy))
    assert torch.equal(again.actions[0], episodes.rollouts.actions[row])
