# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The oracle: its measurements, its schedules, and that it is closer to the dense model than `fixed`."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sol_hf import Probes, ScheduleController, level_costs
from sol_hf.controllers.fixed import fixed_schedule
from sol_hf.episodes.counterfactuals import measure
from sol_hf.episodes.rollouts import prefill, roll_out
from sol_hf.evaluation.oracle import cheapest_levels, horizon_parts, measure_damage, oracle_schedule
from support.bases import tiny_base
from support.cases import control


CONTEXT, STEPS, BLOCKS = 20, 10, 3
LEVELS = dict(token_keep=[0.2, 0.4, 0.6, 0.8, 1.0], mlp_keep=[0.4, 0.6, 0.8, 1.0], bits=[3, 4, 6, 8, 16])
ALL = torch.ones(STEPS, dtype=torch.bool)


def problem(family="llama"):
    model = control(tiny_base(family, torch.float64), episode_length=STEPS, **LEVELS)
    blocks = torch.randint(3, 99, (BLOCKS, CONTEXT + STEPS + 1), generator=torch.Generator().manual_seed(4))
    return model, blocks, Probes.of(model.action_space, 6)


def divergence(model, blocks, schedule) -> torch.Tensor:
    """KL of every step, `(blocks, steps)`, of a schedule `(blocks, steps)`."""
    prefix = prefill(model, blocks, CONTEXT, dense=True)
    return roll_out(model, prefix, blocks, torch.ones(len(blocks), 3), ScheduleController(schedule.T)).divergence


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_the_damage_is_that_of_a_schedule_with_one_cheap_step(family):
    model, blocks, probes = problem(family)
    now, ahead = (measure_damage(model, blocks, CONTEXT, probes, look_ahead) for look_ahead in (0, 3))
    alone = measure(model, blocks, CONTEXT, probes, torch.zeros(BLOCKS, STEPS, dtype=torch.long)).divergence
    torch.testing.assert_close(now, alone)
    for step, number in [(0, 0), (4, 1), (STEPS - 2, 6), (STEPS - 1, 5)]:
        schedule = torch.full((BLOCKS, STEPS), model.action_space.dense_id)
        schedule[:, step] = probes.actions[number]
        found = divergence(model, blocks, schedule)[:, step : step + 4].sum(dim=1)
        torch.testing.assert_close(ahead[:, step, number], found, atol=1e-5, rtol=1e-5, check_dtype=False)
    assert (ahead[:, :-1] - now[:, :-1]).abs().max() > 1e-3


@pytest.mark.parametrize("look_ahead", [0, 3])
@pytest.mark.parametrize("means", [(0.3, 0.5, 0.25), (0.7, 0.8, 0.5), (1.0, 0.9, 0.8)])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_it_diverges_less_than_the_fixed_schedule(family, means, look_ahead):
    model, blocks, probes = problem(family)
    wanted, space = torch.tensor(means), model.action_space
    tables = level_costs(measure_damage(model, blocks, CONTEXT, probes, look_ahead), probes, space)
    oracle, fixed = oracle_schedule(tables, space, wanted, ALL), fixed_schedule(wanted, BLOCKS, ALL, space)
    spent = space.ratios[oracle].mean(dim=(0, 1))
    assert (spent <= wanted + 1e-5).all() and (spent >= wanted - 0.03).all()
    assert divergence(model, blocks, oracle).mean() < 0.95 * divergence(model, blocks, fixed).mean()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 10**6), st.floats(0, 1))
def test_no_schedule_that_costs_as_little_spends_as_little(steps, size, seed, share):
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randperm(8, generator=generator)[:size].double().add(1) / 8
    costs = torch.rand(steps, size, generator=generator, dtype=torch.float64)
    mean = float(levels.min() + share * (levels.max() - levels.min()))
    chosen = cheapest_levels(costs, levels, mean)
    spent, cost = float(levels[chosen].sum()), float(costs[range(steps), chosen].sum())
    assert spent <= mean * steps + 1e-5
    for other in itertools.product(range(size), repeat=steps):
        if float(levels[list(other)].sum()) <= spent + 1e-9:
            assert cost <= float(costs[range(steps), list(other)].sum()) + 1e-9


def test_equal_steps_share_what_is_left():
    levels = torch.tensor([0.25, 1.0])
    chosen = cheapest_levels(torch.tensor([[1.0, 0.0]]).expand(8, 2), levels, 0.7)
    assert float(levels[chosen].mean()) == pytest.approx(0.25 + 0.75 * 4 / 8)


def test_steps_that_are_not_controllable_stay_dense():
    space = control(tiny_base("llama"), **LEVELS).action_space
    counted = ALL.clone()
    counted[:3] = False
    tables = [torch.rand(BLOCKS, STEPS, len(levels)) for levels in space.levels.values()]
    schedule = oracle_schedule(tables, space, torch.tensor([0.5, 0.6, 0.4]), counted)
    assert (schedule[:, :3] == space.dense_id).all()
    assert (space.ratios[schedule[:, counted]].mean(dim=(0, 1)) <= torch.tensor([0.5, 0.6, 0.4]) + 1e-5).all()


@pytest.mark.parametrize("horizon", ["generation", "episode", None])
def test_means_are_kept_over_what_the_policy_keeps_them_over(horizon):
    space, steps = control(tiny_base("llama"), **LEVELS).action_space, 2 * STEPS
    generator = torch.Generator().manual_seed(2)
    tables = [torch.rand(BLOCKS, steps, len(levels), generator=generator) for levels in space.levels.values()]
    tables = [table * torch.arange(1, BLOCKS + 1)[:, None, None] for table in tables]  # the last is dear
    means, parts = torch.tensor([0.5, 0.6, 0.4]), horizon_parts(BLOCKS, steps, horizon, STEPS)
    schedule = oracle_schedule(tables, space, means, torch.ones(steps, dtype=torch.bool), parts)
    ratios = space.ratios[schedule]
    of_texts, of_episodes = ratios.mean(dim=1), ratios.unflatten(1, (2, STEPS)).mean(dim=2)
    assert (ratios.mean(dim=(0, 1)) <= means + 1e-5).all()
    assert (of_texts <= means + 1e-5).all() == (horizon is not None)
    assert (of_episodes <= means + 1e-5).all() == (horizon == "episode")
