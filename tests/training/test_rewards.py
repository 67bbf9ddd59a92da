# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Returns, penalties and advantages: published numbers, sums done by hand, and plain Python loops as reference."""

import math
from statistics import fmean, pstdev

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sol_hf.training.rewards import (
    budget_penalty,
    discounted_returns,
    group_advantages,
    outcome_returns,
    task_reward,
    whiten,
)


ALPHAS = (100.0, 100.0, 200.0)
SHAPES = dict(seed=st.integers(0, 10**6), groups=st.integers(1, 3), size=st.integers(1, 5), steps=st.integers(1, 7))


def check_close(actual: torch.Tensor, expected, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), atol=tolerance, rtol=0)


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uniform(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def golden(golden_vectors) -> dict[str, torch.Tensor]:
    """The vectors `grpo.*`, stored as (steps, rows), turned to (rows, steps)."""
    return {
        name.removeprefix("grpo."): v.T
        for name, v in golden_vectors.items()
        if name.startswith("grpo.") and v.dim() > 1
    } | {"penalty": golden_vectors["grpo.penalty"]}


def golden_penalty(golden, settings) -> torch.Tensor:
    ratios = torch.stack([golden[name] for name in ("token_keep", "mlp_keep", "bits_ratio")], dim=-1)
    return budget_penalty(
        ratios, golden["controllable"].bool(), golden["targets"], settings["alpha"], settings["tolerance"]
    )


def test_golden_penalty(golden, golden_meta):
    assert not golden["controllable"].bool().all()
    check_close(golden_penalty(golden, golden_meta["grpo"]), golden["penalty"])


def test_golden_returns(golden, golden_meta):
    check_close(discounted_returns(golden["task_reward"], golden_meta["grpo"]["gamma"]), golden["returns"])


def test_golden_advantages(golden, golden_meta):
    """The stored returns are before the penalty, the advantages after it; all steps take part in the whitening."""
    options = golden_meta["grpo"]
    returns = discounted_returns(golden["task_reward"], options["gamma"])
    advantages = group_advantages(returns - golden_penalty(golden, options)[:, None], options["group_size"])
    check_close(advantages, golden["advantages_center"])
    check_close(whiten(advantages), golden["advantages_whitened"])


def test_task_reward():
    logprobs, divergence = torch.tensor([[-1.0, -2.0]]), torch.tensor([[0.5, 1.0]])
    check_close(task_reward(logprobs, divergence, 0.25), [[-0.875, -1.75]])
    check_close(task_reward(logprobs, divergence, 1.0), [[-0.5, -1.0]])
    assert task_reward(logprobs, None, 0).equal(logprobs)


def test_an_infinite_divergence_without_weight_does_no_harm():
    assert task_reward(torch.tensor([[-1.0]]), torch.tensor([[math.inf]]), 0.0).tolist() == [[-1.0]]


def test_returns_by_hand():
    rewards = torch.tensor([[1.0, 2.0, 4.0], [0.0, 0.0, -8.0]])
    check_close(discounted_returns(rewards, 0.5), [[3.0, 4.0, 4.0], [-2.0, -4.0, -8.0]])
    check_close(discounted_returns(rewards, 0.5, "max"), [[1.0, 2.0, 4.0], [0.0, 0.0, -8.0]])
    check_close(discounted_returns(rewards, 1.0, "max"), [[4.0, 4.0, 4.0], [0.0, 0.0, -8.0]])
    check_close(discounted_returns(rewards, 0.0), rewards)
    check_close(discounted_returns(rewards[:, :1], 0.85), rewards[:, :1])


def test_returns_leave_the_rewards_alone():
    rewards = torch.ones(2, 3)
    discounted_returns(rewards, 0.85)
    assert rewards.equal(torch.ones(2, 3))


def test_penalty_by_hand():
    ratios = torch.tensor([[[0.2, 1.0, 0.5], [0.6, 1.0, 1.0], [1.0, 0.1, 0.1]]])
    counted = torch.tensor([[True, True, False]])
    targets = torch.tensor([[0.3, 0.99, 1.0]])
    expected = 100 * (0.4 - 0.3 - 0.02) ** 2 + 0 + 200 * (1.0 - 0.75 - 0.02) ** 2
    check_close(budget_penalty(ratios, counted, targets, ALPHAS, 0.02), [expected])


def test_an_axis_without_a_choice_costs_nothing():
    ratios, counted, targets = torch.ones(1, 2, 3), torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 3)
    check_close(budget_penalty(ratios, counted, targets, ALPHAS, 0.0, (True, False, False)), [100.0])
    check_close(budget_penalty(ratios, counted, targets, ALPHAS, 0.0, (False, False, False)), [0.0])


def test_uncontrollable_steps_do_not_count():
    ratios = torch.full((2, 3, 3), 0.5)
    ratios[:, 0] = torch.nan
    counted = torch.tensor([[False, True, True], [False, False, False]])
    penalty = budget_penalty(ratios, counted, torch.tensor([[0.5, 0.5, 0.5], [0.1, 0.1, 0.1]]), ALPHAS, 0.02)
    assert penalty.tolist() == [0.0, 0.0]


def test_outcome():
    returns = outcome_returns(torch.tensor([[1.0, 2.0, 3.0], [0.0, -1.0, 0.0]]))
    check_close(returns, [[6.0] * 3, [-1.0] * 3])
    check_close(group_advantages(returns, 2), [[3.5] * 3, [-3.5] * 3])


def test_advantages_by_hand():
    returns = torch.tensor([[1.0, 0.0], [3.0, 0.0], [10.0, 5.0], [10.0, 7.0]])
    check_close(group_advantages(returns, 2), [[-1, 0], [1, 0], [0, -1], [0, 1]])
    check_close(group_advantages(3 * returns, 2, "zscore"), [[-1, 0], [1, 0], [0, -1], [0, 1]])


@pytest.mark.parametrize("value", [0.1, -1.7, 1e4 + 0.1])
@pytest.mark.parametrize("size", [1, 3, 6, 7])
@pytest.mark.parametrize("scale", ["center", "zscore"])
def test_equal_rewards_give_exactly_no_advantage(value, size, scale):
    returns = discounted_returns(torch.full((2 * size, 5), value), 0.85)
    advantages = group_advantages(returns, size, scale)
    assert advantages.eq(0).all()
    assert whiten(advantages).eq(0).all()
    assert whiten(torch.full((size, 7), value)).eq(0).all()


def test_whitening_by_hand():
    by_hand = torch.tensor([[-3.0, -1.0], [1.0, 3.0]]) / math.sqrt(5)
    check_close(whiten(torch.tensor([[1.0, 3.0], [5.0, 7.0]])), by_hand)


def test_whitening_under_a_mask():
    advantages = torch.tensor([[1.0, 3.0, torch.nan], [math.inf, 5.0, 7.0]])
    mask = torch.tensor([[True, True, False], [False, True, True]])
    check_close(whiten(advantages, mask), torch.tensor([[-3.0, -1.0, 0.0], [0.0, 1.0, 3.0]]) / math.sqrt(5))
    assert whiten(advantages, torch.zeros_like(mask)).tolist() == [[0.0] * 3] * 2


@settings(max_examples=50, deadline=None)
@given(**SHAPES, gamma=st.floats(0, 1), kind=st.sampled_from(["sum", "max"]))
def test_returns_equal_the_recursion(seed, groups, size, steps, gamma, kind):
    rewards = draw(seed, groups * size, steps)
    expected = []
    for row in rewards.tolist():
        back = [row[-1]]
        for reward in row[-2::-1]:
            back.append(reward + gamma * back[-1] if kind == "sum" else max(reward, gamma * back[-1]))
        expected.append(back[::-1])
    check_close(discounted_returns(rewards, gamma, kind), expected, 1e-9)


@settings(max_examples=50, deadline=None)
@given(**SHAPES, tolerance=st.floats(0, 0.3), free=st.tuples(st.booleans(), st.booleans(), st.booleans()))
def test_penalty_equals_the_loops(seed, groups, size, steps, tolerance, free):
    rows = groups * size
    ratios, targets = uniform(seed, rows, steps, 3), uniform(seed + 1, rows, 3)
    counted = uniform(seed + 2, rows, steps) < 0.6
    expected = []
    for row in range(rows):
        kept = [step for step in range(steps) if counted[row, step]]
        total = 0.0
        for axis in range(3):
            if kept and free[axis]:
                mean = fmean(float(ratios[row, step, axis]) for step in kept)
                total += ALPHAS[axis] * max(abs(mean - float(targets[row, axis])) - tolerance, 0) ** 2
        expected.append(total)
    check_close(budget_penalty(ratios, counted, targets, ALPHAS, tolerance, free), expected, 1e-9)


@settings(max_examples=50, deadline=None)
@given(**SHAPES, scale=st.sampled_from(["center", "zscore"]))
def test_advantages_equal_the_loops(seed, groups, size, steps, scale):
    returns = draw(seed, groups * size, steps)
    expected = torch.zeros_like(returns)
    for group in range(groups):
        rows = range(group * size, (group + 1) * size)
        for step in range(steps):
            values = [float(returns[row, step]) for row in rows]
            divisor = pstdev(values) + 1e-8 if scale == "zscore" else 1.0
            for row, value in zip(rows, values, strict=True):
                expected[row, step] = (value - fmean(values)) / divisor
    check_close(group_advantages(returns, size, scale), expected, 1e-6)


@settings(max_examples=50, deadline=None)
@given(**SHAPES)
def test_whitened_values_have_mean_0_and_deviation_1(seed, groups, size, steps):
    advantages, mask = draw(seed, groups * size, steps), uniform(seed, groups * size, steps) < 0.7
    kept = whiten(advantages, mask)[mask].tolist()
    assert whiten(advantages, mask)[~mask].eq(0).all()
    assert not kept or abs(fmean(kept)) < 1e-6
    assert len(kept) < 2 or abs(pstdev(kept) - 1) < 1e-4


@settings(max_examples=30, deadline=None)
@given(**SHAPES)
def test_groups_do_not_affect_each_other(seed, groups, size, steps):
    returns = draw(seed, (groups + 1) * size, steps)
    changed = returns.clone()
    changed[:size] += 1 + draw(seed + 1, size, steps)
    assert group_advantages(returns, size)[size:].equal(group_advantages(changed, size)[size:])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: task_reward(x, None, 0.5), "there is no `divergence`"),
        (lambda x: task_reward(x, x, 1.5), "must lie in 0..1"),
        (lambda x: discounted_returns(x, 0.85, "mean"), "one of sum, max"),
        (lambda x: discounted_returns(x, 1.85), "`gamma` must lie in 0..1"),
        (lambda x: group_advantages(x, 4), "6 rows do not divide into groups of 4"),
        (lambda x: group_advantages(x, 0), "groups of 0"),
        (lambda x: group_advantages(x, 3, "rank"), "one of center, zscore"),
        (
            lambda x: budget_penalty(x[..., None].expand(6, 2, 3), x > 0, x[:, :1], (1.0, 2.0), 0.02),
            "`alphas` needs 3",
        ),
        (
            lambda x: budget_penalty(x[..., None].expand(6, 2, 3), x > 0, x[:, :1], ALPHAS, 0.02, (True,)),
            "`free` needs 3 entries",
        ),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.ones(6, 2))
