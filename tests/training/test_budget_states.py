# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A policy is fitted to what it sees where `generate` keeps its budget."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sol_hf import ActionSpace
from sol_hf.budget.bank import MOST_SAVED, Bank
from sol_hf.training.budget_states import BudgetStates
from sol_hf.training.warmup_targets import run_on_policy
from support.cases import sol_model


SPACE = ActionSpace([0.1, 0.2, 0.5, 1.0], [0.7, 1.0], [4, 6, 8, 16])
STEPS = 6


def targets_at(seed: int, rows: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    low, high = SPACE.ratios.amin(0), SPACE.ratios.amax(0)
    return low + (high - low) * torch.rand(rows, 3, generator=generator)


@given(st.integers(0, 10**6), st.sampled_from(["generation", "episode"]))
def test_an_episode_takes_only_what_its_budget_allows(seed, horizon):
    torch.manual_seed(seed)
    states, targets = BudgetStates(SPACE, STEPS, True, horizon), targets_at(seed)
    begin = states.begin(targets)
    levels = torch.stack([torch.randint(count, (5, STEPS)) for count in SPACE.level_counts], dim=-1)
    seen = states.walk(begin, levels, torch.ones(5, STEPS))
    assert seen.bounds is not None and seen.scalars.shape == (5, STEPS, 9)
    taken = SPACE.ratios[seen.previous_actions[:, 1:]]
    assert (taken <= seen.bounds[:, :-1, 1] + 1e-4).all() and (taken >= seen.bounds[:, :-1, 0] - 1e-4).all()
    torch.testing.assert_close(seen.scalars[:, 0, 2:5], begin.asked)
    allowance = (1 - targets) if begin.balance is None else begin.balance
    number = torch.arange(1, STEPS)[:, None]
    assert (taken.cumsum(1) <= targets[:, None] * number + allowance[:, None] + 1e-4).all()
    if horizon == "generation":
        asked = (targets + ((begin.balance - (1 - targets)) / 32).clamp(-0.1, 0.1)).maximum(SPACE.ratios.amin(0))
        torch.testing.assert_close(begin.asked, asked.minimum(torch.ones(3)))


def test_banks_are_drawn_as_at_the_start_of_a_call_and_poorer_and_richer():
    targets = torch.full((4000, 3), 0.5)
    opened = Bank.opened(targets, SPACE)
    drawn = opened.drawn_balance(torch.rand(4000, 3))
    assert (drawn >= 0).all() and (drawn <= MOST_SAVED).all()
    assert [(drawn == 0.5).float().mean(), (drawn < 0.5).float().mean()] == pytest.approx([0.25, 0.375], abs=0.03)
    assert drawn.max() > 3.5 and drawn.min() < 0.02


def test_without_limits_an_episode_takes_the_levels_that_are_wanted():
    states = BudgetStates(SPACE, STEPS, False, "generation")
    levels = torch.stack([torch.randint(count, (5, STEPS)) for count in SPACE.level_counts], dim=-1)
    seen = states.walk(states.begin(targets_at(1)), levels, torch.ones(5, STEPS))
    assert seen.bounds is None
    assert torch.equal(seen.previous_actions[:, 1:], SPACE.ids_of(levels)[:, :-1])


@pytest.mark.parametrize("level, bounds, nearest", [(3, (0.1, 0.5), 2), (0, (1.0, 1.0), 3), (1, (0.1, 1.0), 1)])
def test_the_nearest_level_that_is_allowed(level, bounds, nearest):
    states = BudgetStates(SPACE, STEPS, True, "generation")
    limits = torch.tensor([[[bounds[0], 0.7, 0.25], [bounds[1], 1.0, 1.0]]])
    assert states.nearest_within(torch.tensor([[level, 0, 0]]), limits).tolist() == [[nearest, 0, 0]]


def test_practice_is_under_the_budget_of_generate_and_begins_with_drawn_banks():
    model = sol_model("llama", torch.float32)
    space, steps = model.action_space, model.config.episode_length
    blocks = torch.randint(3, 99, (5, 12 + steps + 6), generator=torch.Generator().manual_seed(2))
    low, high = space.ratios.amin(0), space.ratios.amax(0)
    torch.manual_seed(3)
    targets = low + (high - low) * torch.rand(8, 3)
    targets[0] = high
    states = BudgetStates(space, steps, True, "generation")
    rollouts = run_on_policy(model, blocks, 12, targets, states).rollouts
    taken = space.ratios[rollouts.actions]
    assert (taken <= rollouts.bounds[:, :, 1] + 1e-4).all() and (taken[0] == high).all()
    assert not torch.equal(rollouts.asked, targets) and torch.equal(rollouts.targets, targets)
    torch.testing.assert_close(rollouts.scalars[:, 0, 2:5], rollouts.asked)
    with pytest.raises(ValueError, match="needs a `GenerationBudgetProcessor`"):
        run_on_policy(model, blocks, 12, targets, NoLimits(**vars(states)))


class NoLimits(BudgetStates):
    """Draws banks, but does not keep them."""

    def processors(self, targets):
        return BudgetStates(self.space, self.steps, False, self.horizon).processors(targets)
