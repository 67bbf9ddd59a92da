# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Sweeps and evaluations over four axes whose steps read planes of the weights."""

import pytest
import torch

from sol_hf import FixedController, UnsupportedAxisError, evaluate_budgets
from sol_hf.costs.compute_costs import ComputeCosts
from sol_hf.decoding.refresh_rule import LEAST_GAIN, expected_gain
from sol_hf.episodes.step_settings import StepSettings
from sol_hf.evaluation.policy_evaluation import budgets_within
from sol_hf.evaluation.sweep.sweep import Sweep, SweepConfig
from sol_hf.evaluation.sweep.table import SweepError
from support.bases import tiny_base
from support.cases import control
from support.new_axes import nested_model


CONTEXT, STEPS = 20, 6
BUDGETS = ((0.5, 0.8, 7.0, 0.7), (0.6, 1.0, 5.0, 1.0))
CONTROLLERS = ("policy", "fixed", "random:2", "drift", "oracle")


def blocks_of(number: int = 3) -> torch.Tensor:
    return torch.randint(3, 99, (number, CONTEXT + STEPS + 1), generator=torch.Generator().manual_seed(4))


def rows_of(folder, model, budgets=BUDGETS, controllers=CONTROLLERS, **settings) -> list[dict]:
    return [
        dict(row)
        for row in Sweep(model, blocks_of(), SweepConfig(controllers, budgets, CONTEXT, **settings), folder).run()
    ]


def test_a_sweep_reports_what_was_read(tmp_path):
    model = nested_model()
    model.generation_config.budget_horizon = "episode"
    rows = rows_of(tmp_path, model, hard=True)
    assert len(rows) == 1 + 2 * len(CONTROLLERS)
    for row in rows:
        # levels 3, 5, 7 are read as 4, 5, 8 bits, and there is no fewer than 4
        assert row["controller"] == "dense" or 4 <= row["realised_bits"] <= row["target_bits"] + 0.5, row
        assert row["bytes_per_token"] < 2 * row["dense_bytes_per_token"]
    policy = next(row for row in rows if row["controller"] == "policy" and row["bits"] == 7)
    fixed = next(row for row in rows if row["controller"] == "fixed" and row["bits"] == 7)
    assert fixed["realised_bits"] == pytest.approx(policy["realised_bits"], abs=0.2)


def test_a_fixed_schedule_in_a_sweep_is_that_of_score(tmp_path):
    model = nested_model()
    _, row = rows_of(tmp_path, model, budgets=((0.6, 1.0, 8.0, 1.0),), controllers=("fixed",))
    scored = model.score(
        blocks_of(), context_length=CONTEXT, controller=FixedController(), token_keep=0.6, bits=8, kv_refresh=False
    )
    assert row["realised_bits"] == 8 and scored.realised[:, 2].tolist() == [8, 8, 8]  # by the level 7
    assert row["log_perplexity"] == pytest.approx(-float(scored.logprobs.mean()), abs=1e-5)


def test_budgets_of_a_grid_can_be_kept_by_planes():
    space = StepSettings.of(nested_model()).space
    assert budgets_within(space, [(0.5, 0.7, 2), (0.5, 0.7, 30)]) == [(0.5, 0.7, 4, 1.0), (0.5, 0.7, 16, 1.0)]


def test_bytes_of_a_sweep_are_those_of_planes(tmp_path):
    model = nested_model()
    rows = rows_of(tmp_path / "nested", model, budgets=((1.0, 1.0, 5.0, 1.0),), controllers=("fixed",))
    costs, action = ComputeCosts.of(model, CONTEXT, "nested"), model.action_space.index(1.0, 1.0, 5, 1.0)
    assert rows[1]["bytes_per_token"] == pytest.approx(float(costs.bytes[action]) + costs.refresh_bytes_in_planes)
    model.generation_config.bits_backend = "fake"
    fake = rows_of(tmp_path / "fake", model, budgets=((1.0, 1.0, 5.0, 1.0),), controllers=("fixed",))
    assert fake[1]["bytes_per_token"] > rows[1]["bytes_per_token"]
    assert fake[1]["log_perplexity"] != rows[1]["log_perplexity"]
    with pytest.raises(SweepError, match="another bits_backend"):
        rows_of(tmp_path / "nested", model, budgets=((1.0, 1.0, 5.0, 1.0),), controllers=("fixed",))


def test_a_hard_budget_holds_for_what_is_read():
    model = nested_model()
    model.generation_config.budget_horizon = "episode"
    found = evaluate_budgets(model, blocks_of(), CONTEXT, BUDGETS, hard=True, dense=True)
    for evaluation, budget in zip(found, BUDGETS, strict=True):
        assert all(got <= asked + 1e-6 for got, asked in zip(evaluation.realised, budget, strict=True))


def test_a_budget_that_no_plane_can_keep_is_refused_before_anything_runs(tmp_path, monkeypatch):
    model = nested_model()
    monkeypatch.setattr(type(model.base), "forward", lambda *_, **__: pytest.fail("a forward"))
    low = ((0.6, 1.0, 3.0, 1.0),)
    for run in (lambda: rows_of(tmp_path, model, low), lambda: evaluate_budgets(model, blocks_of(), CONTEXT, low)):
        with pytest.raises(ValueError, match=r"`bits`=3 is below what the smallest level .* is carried out with, 4"):
            run()
    model.generation_config.max_plane_bytes = 1
    for run in (lambda: rows_of(tmp_path, model), lambda: evaluate_budgets(model, blocks_of(), CONTEXT, BUDGETS)):
        with pytest.raises(ValueError, match="`max_plane_bytes` is 1"):
            run()


def test_an_axis_that_the_base_cannot_carry_out_is_refused_unless_it_stays_dense(tmp_path):
    base = tiny_base("llama")
    for layer in base.model.layers:
        layer.mlp = torch.nn.Linear(32, 32)
    model = control(base)
    with pytest.raises(UnsupportedAxisError, match="Leave `mlp_keep` dense, in every budget"):
        rows_of(tmp_path, model, budgets=((0.5, 0.7, 16),), controllers=("fixed",))
    with pytest.raises(UnsupportedAxisError, match="Leave `mlp_keep` dense"):
        evaluate_budgets(model, blocks_of(), CONTEXT, [(0.5, 0.7, 16)])
    assert len(rows_of(tmp_path, model, budgets=((0.5, 1.0, 16),), controllers=("fixed", "policy"))) == 3


@pytest.mark.parametrize(("kv_refresh", "bits", "refreshed"), [(True, 5.0, 1), (False, 5.0, 0), ("auto", 5.0, None)])
def test_only_refreshes_that_generate_would_make_are_counted(tmp_path, kv_refresh, bits, refreshed):
    model = nested_model()
    model.generation_config.kv_refresh = kv_refresh
    (_, row) = rows_of(tmp_path, model, budgets=((1.0, 1.0, bits, 1.0),), controllers=("fixed",))
    if refreshed is None:
        space, rule = StepSettings.of(model).space, model.config.selection_rule
        spent = space.values[[space.index(1.0, 1.0, 5, 1.0)]][:, None]
        refreshed = int(expected_gain(spent, space, rule, "nested")[0] >= LEAST_GAIN)
    assert row["refresh_overhead"] == refreshed
