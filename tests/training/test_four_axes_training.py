# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Training over an action space with a fourth axis: budgets, penalties, metrics, warmup, an update."""

import json

import pytest
import torch

from sol_hf import BudgetError
from sol_hf.budget.axes import BITS
from sol_hf.training.grpo_config import SOLGRPOConfig
from sol_hf.training.rewards import budget_penalty
from sol_hf.training.warmup import CounterfactualWarmup, CounterfactualWarmupConfig
from sol_hf.training.warmup_targets import BudgetCorrection, level_logprobs
from support.extra_axis import FOUR_LEVELS, four_axes
from support.fourth_axis_runs import four_axis_model, fourth_axis
from support.trainers import changed, losses, trainer_of, weights


def config(**settings) -> SOLGRPOConfig:
    return SOLGRPOConfig("unused", use_cpu=True, report_to=[], **settings)


class TestConfig:
    def test_a_further_axis_draws_from_its_own_range(self, mlp_noise):
        args = config()
        assert [args.draw_budget(mlp_noise, share) for share in (0.0, 0.5)] == [0.5, 0.75]
        assert args.draw_budget(BITS, 0.5) == 10.5

    def test_the_range_of_a_further_axis_can_be_set(self, mlp_noise):
        args = config(axis_budgets={"mlp_noise": [0.6, 0.8]})
        assert [args.draw_budget(mlp_noise, share) for share in (0.0, 0.5)] == pytest.approx([0.6, 0.7])
        assert config(axis_budgets='{"mlp_noise": [0.6, 0.8]}').axis_budgets == {"mlp_noise": [0.6, 0.8]}

    def test_lists_are_drawn_from(self, mlp_noise):
        choices = dict(bits_budgets=[6.0, 8.0, 12.0], axis_budgets={"mlp_noise": [0.5, 0.7, 1.0]})
        args = config(draw_from_list=True, **choices)
        assert [args.draw_budget(mlp_noise, share) for share in (0.0, 0.4, 0.99)] == [0.5, 0.7, 1.0]
        assert args.draw_budget(BITS, 0.99) == 12.0
        unnamed = config(draw_from_list=True, bits_budgets=[6.0, 8.0, 12.0])
        assert unnamed.draw_budget(mlp_noise, 0.5) == 0.75

    def test_penalty_weights_of_further_axes_are_their_own(self, mlp_noise):
        args = config(penalty_weights=[1.0, 2.0, 3.0])
        assert [args.penalty_weight(axis) for axis in four_axes().axes] == [1.0, 2.0, 3.0, mlp_noise.penalty_weight]

    @pytest.mark.parametrize(
        ("budgets", "error", "message"),
        [
            ({"bits": [5, 8]}, ValueError, "those of `bits_budgets`"),
            ({"mlp_nois": [0.5, 0.8]}, ValueError, "Unknown axis 'mlp_nois'.* Did you mean 'mlp_noise'"),
            ({"mlp_noise": [0.8, 0.5]}, ValueError, r"`axis_budgets\['mlp_noise'\]` must be a range"),
            ({"mlp_noise": [0.5, 1.5]}, BudgetError, "`mlp_noise` must lie in"),
            ([0.5, 0.8], ValueError, "must be a dictionary"),
        ],
    )
    def test_wrong_ranges_are_refused(self, mlp_noise, budgets, error, message):
        with pytest.raises(error, match=message):
            config(axis_budgets=budgets)


def test_the_penalty_counts_every_axis():
    ratios = torch.full((1, 2, 4), 0.5)
    targets = torch.tensor([[0.5, 0.5, 0.5, 0.7]])
    found = budget_penalty(ratios, torch.ones(1, 2, dtype=torch.bool), targets, (1, 1, 1, 100), 0.1)
    assert found.tolist() == pytest.approx([100 * 0.1**2])


def test_a_correction_of_four_axes_makes_up_for_what_is_overspent():
    lowest, highest = torch.tensor([0.2, 0.5, 0.25, 0.5]), torch.ones(4)
    budgets = lowest + (highest - lowest) * torch.rand(600, 4, generator=torch.Generator().manual_seed(5))
    correction = BudgetCorrection(lowest, highest)

    def spend(wanted):
        share = (wanted - lowest) / (highest - lowest)
        return wanted + 0.2 * share * (1 - share) * (0.5 + share[:, 3:])

    before = (spend(budgets) - budgets).abs().mean()
    for _ in range(3):
        correction.update(budgets, spend(correction(budgets)))
    assert (spend(correction(budgets)) - budgets).abs().mean() < 0.2 * before


def test_probabilities_of_levels_are_sums_over_the_actions(mlp_noise):
    space = four_axes()
    logprobs = torch.randn(2, 3, len(space), generator=torch.Generator().manual_seed(0)).log_softmax(dim=-1)
    for axis, marginal in zip(space.axis_names, level_logprobs(logprobs, space), strict=True):
        for number, level in enumerate(FOUR_LEVELS[axis]):
            chosen = [action for action, levels in enumerate(space.table) if levels[space.column(axis)] == level]
            torch.testing.assert_close(marginal[..., number].exp(), logprobs[..., chosen].exp().sum(dim=-1))


def test_the_fourth_axis_is_measured_and_fitted(tmp_path):
    settings = dict(
        warmup_dir=str(tmp_path / "measured"),
        warmup_blocks=4,
        warmup_context_length=12,
        warmup_steps_per_block=12,
        warmup_token_keep=[0.2],
        warmup_mlp_keep=[0.5],
        warmup_bits=[4],
        warmup_updates=10,
        warmup_episodes=8,
        warmup_cost_models=2,
        warmup_practice_rounds=1,
        warmup_practice_episodes=8,
    )
    with fourth_axis():
        model = four_axis_model(budget_prior=True)
        starter = CounterfactualWarmup(model, CounterfactualWarmupConfig(**settings))
        assert starter.probes.axes == (0, 1, 2, 3)
        before = weights(model.policy)
        starter.run(torch.randint(3, 99, (4, starter.block_length), generator=torch.Generator().manual_seed(2)))
        assert changed(before, model.policy)
        with pytest.raises(ValueError, match="0.7 is not a level"):
            CounterfactualWarmup(
                model, CounterfactualWarmupConfig(**settings, warmup_axis_levels={"mlp_noise": [0.7]})
            )
    written = json.loads((tmp_path / "measured" / "fit.json").read_text())
    assert written["policy"]["levels"]["mlp_noise"] == [0.5, 1.0] and "warmup_axis_levels" not in written


def test_levels_of_an_axis_that_is_not_further_are_refused():
    for axis in ("bits", "mlp_noise"):
        with pytest.raises(ValueError, match=f"names '{axis}', which is no further axis"):
            CounterfactualWarmupConfig(warmup_axis_levels={axis: [0.5]})


def test_a_policy_over_four_axes_is_trained(tmp_path):
    with fourth_axis():
        model = four_axis_model()
        model.policy.float()
        before = weights(model.policy)
        trainer = trainer_of(tmp_path, model, axis_budgets={"mlp_noise": [0.6, 0.9]})
        trainer.train()
        assert changed(before, model.policy) and losses(trainer)
        blocks = torch.randint(1, 99, (2, 27), generator=torch.Generator().manual_seed(0))
        targets = trainer.roll_out(blocks, 0, 0).targets
    assert targets.shape == (8, 4) and ((targets[:, 3] >= 0.6) & (targets[:, 3] <= 0.9)).all()
    logged = trainer.state.log_history[0]
    assert 0.6 <= logged["sol/requested_mlp_noise"] <= 0.9
    assert logged["sol/mlp_noise/0.5"] + logged["sol/mlp_noise/1"] == pytest.approx(1)
    assert logged["sol/mlp_noise"] == pytest.approx(1 - 0.5 * logged["sol/mlp_noise/0.5"], abs=1e-3)
    assert "sol/bits_ratio" in logged
