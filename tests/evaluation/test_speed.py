# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""`measure_speed`: what is gained by dense steps on our cache, and by budgets."""

import pytest
import torch

from sol_hf import Budget, FixedController, measure_speed
from sol_hf.evaluation import speed
from support.cases import HALF, prompts, sol_model


TABLE = [
    dict(net_keep=0.5, token_keep=0.5, mlp_keep=0.5, bits=8, log_perplexity=3.0),
    dict(net_keep=1.0, token_keep=1.0, mlp_keep=1.0, bits=16, log_perplexity=2.0),
]


@pytest.fixture
def model():
    model = sol_model()
    model.config.calibration = TABLE
    return model


def test_a_report_has_base_dense_and_budgets(model):
    budgets = [Budget(**HALF), 0.75]
    report = measure_speed(model, prompts(), budgets, new_tokens=8, repeats=2, controller=FixedController)
    base, dense, half, rate = report.rows
    assert [row.name for row in report.rows] == ["base", speed.DENSE, repr(Budget(**HALF)), "compute=0.75"]
    for row in report.rows:
        assert len(row.tokens_per_second) == 2 and row.spread[0] <= row.median <= row.spread[1] and row.speed_up > 0
    assert base.speed_up == 1 and base.same_tokens == dense.same_tokens == 1
    assert base.realised is None and dense.realised == (1, 1, 16)
    assert half.realised[2] < 9 and half.same_tokens < 1
    assert (base.expected_loss, dense.expected_loss, half.expected_loss) == (None, 0, None)
    assert rate.expected_loss == pytest.approx(0.5)
    lines = str(report).splitlines()
    assert len(lines) == 6 and "+0.500" in lines[4] and lines[5].startswith("2 x ")


def test_rates_are_tokens_over_time_in_turn(model, monkeypatch):
    now = [0.0]

    def clock():
        now[0] += 0.5
        return now[0]

    monkeypatch.setattr(speed.time, "perf_counter", clock)
    report = measure_speed(model, prompts(), new_tokens=5, repeats=3)
    for row in report.rows:
        assert row.tokens_per_second == (4.0,) * 3 and row.speed_up == 1  # 2 rows, a token each in half a second


def test_a_stored_budget_does_not_enter_the_dense_rows(model):
    model.generation_config.compute, model.generation_config.do_sample = 0.5, True
    base, dense = measure_speed(model, prompts(), new_tokens=6, repeats=1).rows
    assert dense.realised == (1, 1, 16) and base.same_tokens == dense.same_tokens == 1


def test_an_old_table_says_nothing_of_losses(model):
    model.config.calibration = TABLE[:1]
    assert measure_speed(model, prompts(), [0.5], new_tokens=3, repeats=1).rows[2].expected_loss is None


def test_what_cannot_be_measured_is_refused(model):
    for wrong in (dict(new_tokens=1), dict(repeats=0)):
        with pytest.raises(ValueError, match="must be at least 2 and `repeats` 1"):
            measure_speed(model, prompts(), **wrong)
    with pytest.raises(ValueError, match="`compute` must lie in"):
        measure_speed(model, prompts(), [0.1], new_tokens=3, repeats=1)
    with pytest.raises(ValueError, match="did you mean `backend`"):
        measure_speed(model, torch.ones(1, 9, dtype=torch.long), [0.5], back_end="fast", new_tokens=3)
