# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Multipliers hold the mean over texts to a budget, and leave it to an episode what it spends."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from sol_hf import ActionSpace
from sol_hf.training.grpo_config import SOLGRPOConfig
from sol_hf.training.multipliers import Multipliers
from support.trainers import GROUP, blocks, last_weights, model_on, same_files, trainer_of


SPACE = ActionSpace([0.1, 0.5, 1.0], [1.0], [4, 8, 16])
RANGES = [(0.1, 0.9), (1.0, 1.0), (0.25, 1.0)]


def multipliers(bins: int = 4, rate: float = 0.5) -> Multipliers:
    return Multipliers(SPACE, RANGES, bins, rate)


def drawn(seed: int, rows: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, 3, generator=generator) * 1.2 - 0.1


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 6), st.floats(0, 10))
def test_they_never_pay_for_spending_and_rise_where_it_is_too_much(seed, bins, rate):
    found, asked = multipliers(bins, rate), drawn(seed)
    torch.testing.assert_close(found.weights(asked).sum(dim=-1), torch.ones(12, 3).double())
    for number in range(5):
        before = found.values.clone()
        found.ascend(asked, drawn(seed + number))
        assert (found.values >= 0).all() and (found.values[1] == 0).all()
    before = found.values.clone()
    found.ascend(asked, asked + 0.1)
    assert (found.values >= before).all()
    change = (found.values - before).sum(dim=1)[[0, 2]]
    torch.testing.assert_close(change, torch.full((2,), rate * bins * 0.1).double(), atol=1e-5, rtol=1e-5)
    found.ascend(asked, asked - 1e9)
    reached = found.weights(asked).sum(dim=0) > 1e-6
    assert rate == 0 or (found.values[reached] == 0).all()


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.permutations(range(12)))
def test_they_do_not_depend_on_the_order_of_the_rollouts(seed, order):
    one, other, asked, spent = multipliers(), multipliers(), drawn(seed), drawn(seed + 1)
    one.ascend(asked, spent)
    other.ascend(asked[order], spent[order])
    torch.testing.assert_close(one.values, other.values)


def test_dual_ascent_ends_where_the_budgets_are_met_on_the_average():
    """A step's loss falls as spending grows, more so in dear texts: then `v = dearness / (1 + multiplier)`."""
    found = multipliers(bins=3, rate=1.5)
    asked = torch.tensor([[0.2, 1, 0.5], [0.5, 1, 0.5], [0.8, 1, 0.5]]).repeat_interleave(64, dim=0)
    dearness = 0.5 + 2 * torch.rand(192, 1, generator=torch.Generator().manual_seed(1))
    for _ in range(1500):
        spent = dearness / (1 + found.of(asked))
        found.ascend(asked, spent)
    means = (dearness / (1 + found.of(asked))).unflatten(0, (3, 64)).mean(dim=1)
    assert means[:, 0].tolist() == pytest.approx([0.2, 0.5, 0.8], abs=0.01)
    assert means[:, 2].tolist() == pytest.approx([0.5] * 3, abs=0.02)
    prices = found.of(asked)[::64, 0]
    assert prices[0] > prices[1] > prices[2] > 0
    assert spent.std() > 0.1  # dear texts still get more


def test_what_costs_a_step_is_what_it_spends_above_what_was_asked():
    found = multipliers(bins=1)
    found.values[:] = torch.tensor([[2.0], [0.0], [0.5]])
    ratios = torch.tensor([[[0.5, 1.0, 0.5], [0.1, 1.0, 1.0], [1.0, 1.0, 1.0]]])
    counted, asked = torch.tensor([[True, True, False]]), torch.tensor([[0.2, 1.0, 0.5]])
    costs = found.costs(ratios, counted, asked)
    assert costs[0].tolist() == pytest.approx([2 * 0.3, 2 * -0.1 + 0.5 * 0.5, 0.0])


def test_they_begin_with_known_prices():
    found = multipliers(bins=2)
    found.begin_with({"token_keep": [[0.1, 3.0], [0.5, 1.0], [0.9, 0.0]], "mlp_keep": [[0.5, 9.0], [1.0, 9.0]]})
    assert found.values[0].tolist() == pytest.approx([2.0, 0.5]) and (found.values[1:] == 0).all()
    with pytest.raises(ValueError, match="prices of 'heads', but the axes are"):
        found.begin_with({"heads": [[0.1, 1.0], [0.2, 1.0]]})
    with pytest.raises(ValueError, match="finite numbers of at least 0"):
        found.begin_with({"bits": [[0.1, -1.0], [0.2, 1.0]]})


RECIPE = dict(
    constraint="multiplier",
    kl_reward_weight=1.0,
    gamma=0.4,
    temperature=1.0,
    entropy_coef=0.002,
    beta=0.05,
    penalty_weights=[0.0, 0.0, 0.0],
    num_iterations=2,
    gradient_cosine_steps=1,
)


def test_what_a_run_under_multipliers_logs(tmp_path):
    trainer = trainer_of(tmp_path, max_steps=3, **RECIPE)
    trainer.train()
    first, _, logged = trainer.state.log_history[:3]
    assert "sol/gradient_cosine" not in first  # without multipliers above 0 the constraint has no gradient
    names = {"sol/multiplier_bits", "sol/multiplier_token_keep/0.2125", "sol/gradient_cosine", "sol/divergence"}
    assert names | {"sol/group_std", "reward", "frac_reward_zero_std"} <= set(logged)
    assert -1 <= logged["sol/gradient_cosine"] <= 1 and logged["sol/divergence"] > 0
    assert logged["sol/task_reward"] == pytest.approx(-logged["sol/divergence"])
    assert first["sol/multiplier_token_keep"] > 0  # a new policy spends too much at small budgets


def test_two_equal_gradients_have_the_cosine_1(tmp_path):
    def price(rollouts):
        ratios = trainer.sol.action_space.ratios[rollouts.actions]
        return -trainer.multipliers.costs(ratios, rollouts.controllable, rollouts.wanted) + rollouts.divergence

    start = {axis: [[0.0, 1.0], [1.0, 1.0]] for axis in ("token_keep", "mlp_keep", "bits")}
    trainer = trainer_of(tmp_path, max_steps=1, reward_terms=[price], prices=start, **RECIPE)
    trainer.train()
    assert trainer.state.log_history[0]["sol/gradient_cosine"] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("mode", ["soft", pytest.param("hard", marks=pytest.mark.slow)])
def test_a_resumed_run_goes_on_with_its_multipliers(tmp_path, mode):
    options = {**RECIPE, "budget_mode": mode, "learning_rate": 1e-2}

    def train(folder, checkpoint=None):
        trainer = trainer_of(folder, model_on(), max_steps=5, save_strategy="steps", save_steps=1, **options)
        trainer.train(resume_from_checkpoint=checkpoint)
        return trainer

    whole = train(tmp_path / "whole")
    for stop in (2, 3):  # between two batches of rollouts, and between two updates on one
        resumed = train(tmp_path / f"from-{stop}", str(tmp_path / "whole" / f"checkpoint-{stop}"))
        assert same_files(last_weights(tmp_path / f"from-{stop}", 5), last_weights(tmp_path / "whole", 5))
        assert torch.equal(resumed.multipliers.values, whole.multipliers.values)
    stored = load_file(tmp_path / "whole" / "checkpoint-5" / "multipliers.safetensors")["values"]
    assert torch.equal(stored, whole.multipliers.values) and bool(stored.any())


def test_a_checkpoint_without_multipliers_is_refused(tmp_path):
    trainer_of(tmp_path, max_steps=1, save_strategy="steps", save_steps=1).train()
    trainer = trainer_of(tmp_path, max_steps=2, **{**RECIPE, "num_iterations": 1, "beta": 0.0})
    with pytest.raises(ValueError, match="has no multipliers for 3 axes and 4 bins: go on with the `constraint`"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_wrong_arguments_are_refused(tmp_path):
    for wrong in (dict(constraint="hope"), dict(multiplier_bins=0), dict(gradient_cosine_steps=-1)):
        with pytest.raises(ValueError, match=f"`{next(iter(wrong))}` must be"):
            SOLGRPOConfig(output_dir=str(tmp_path), **wrong)
    with pytest.raises(ValueError, match="begin multipliers: pass them with"):
        trainer_of(tmp_path, prices={})


def test_the_published_recipe_is_the_default(tmp_path):
    args = SOLGRPOConfig(output_dir=str(tmp_path))
    found = (args.constraint, args.budget_mode, args.kl_reward_weight, args.gamma, args.temperature, args.beta)
    assert found == ("penalty", "soft", 0.0, 0.85, 1.3, 0.0)
    batch = [{"input_ids": row} for row in blocks(4)["input_ids"] for _ in range(GROUP)]
    assert trainer_of(tmp_path)._generate_and_score_completions(batch)["advantages"].isfinite().all()
