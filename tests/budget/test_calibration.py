# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""`compute`: from a net keep rate to a budget, by the calibration table in the config."""

import json

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from sol_hf import Budget, BudgetError, SOLConfig, SOLForCausalLM
from sol_hf.budget.calibration import budget_for
from sol_hf.evaluation.sweep.calibration_file import check_savable, save_calibration
from support.cases import SETTINGS, prompts, sol_model


def point(net_keep, token_keep, mlp_keep, bits, log_perplexity) -> dict:
    return dict(net_keep=net_keep, token_keep=token_keep, mlp_keep=mlp_keep, bits=bits, log_perplexity=log_perplexity)


TABLE = [point(0.4, 0.2, 0.5, 6, 3.0), point(0.6, 0.6, 0.7, 8, 2.5), point(0.7, 0.6, 0.9, 10, 2.4)]
"""As tables were before they had a dense row."""
WITH_DENSE = [*TABLE, point(1.0, 1.0, 1.0, 16.0, 2.3)]


@pytest.fixture
def model() -> SOLForCausalLM:
    model = sol_model()
    model.config.calibration = [dict(row) for row in TABLE]
    return model


@pytest.mark.parametrize("table", [TABLE, WITH_DENSE])
@pytest.mark.parametrize(
    ("compute", "triple"),
    [
        (0.4, (0.2, 0.5, 6)),
        (0.6, (0.6, 0.7, 8)),
        (0.5, (0.4, 0.6, 7)),
        (0.65, (0.6, 0.8, 9)),
        (0.85, (0.8, 0.95, 13)),
        (1, (1, 1, 16)),
    ],
)
def test_a_budget_is_interpolated_between_points(compute, triple, table):
    budget = budget_for(compute, table)
    assert budget.is_dense == (compute == 1) and (budget.token_keep, budget.mlp_keep, budget.bits) == pytest.approx(
        triple
    )


def test_rows_may_have_rates_of_their_own():
    for rates in ([0.5, 1.0], torch.tensor([0.5, 1.0]), np.array([0.5, 1.0])):
        budget = budget_for(rates, TABLE)
        assert budget.token_keep == pytest.approx((0.4, 1.0)) and budget.bits == pytest.approx((7, 16))
    assert budget_for(torch.tensor(0.6), TABLE).rows is None


@pytest.mark.parametrize("compute", [0.39, 1.01, 0, float("nan"), "0.5", True, []])
def test_rates_out_of_the_table_are_refused(compute):
    with pytest.raises(BudgetError, match="`compute` must"):
        budget_for(compute, TABLE)


@pytest.mark.parametrize(
    ("compute", "loss"), [(0.4, 0.7), (0.5, 0.45), (0.6, 0.2), (0.85, 0.05), (1, 0), ([0.5, 1.0], [0.45, 0])]
)
def test_the_table_says_what_a_rate_costs(compute, loss):
    config = SOLConfig(**SETTINGS, calibration=WITH_DENSE)
    assert config.expected_loss(compute) == pytest.approx(loss)


def test_a_table_without_a_dense_row_says_how_to_make_one_that_has_it():
    with pytest.raises(ValueError, match="no dense row.*make it again.*`sol-hf pareto POLICY --data .* --save`"):
        SOLConfig(**SETTINGS, calibration=TABLE).expected_loss(0.6)
    with pytest.raises(ValueError, match="needs a calibration table"):
        SOLConfig(**SETTINGS).expected_loss(1.0)
    with pytest.raises(BudgetError, match=r"must lie in 0.4..1"):
        SOLConfig(**SETTINGS, calibration=WITH_DENSE).expected_loss(0.3)


def test_cheap_steps_may_be_better_than_dense_ones():
    table = [TABLE[0], point(0.6, 0.6, 0.7, 8, 2.2), point(1.0, 1, 1, 16, 2.3)]
    assert SOLConfig(**SETTINGS, calibration=table).expected_loss([0.6, 0.8]) == pytest.approx([-0.1, -0.05])


def test_full_compute_needs_no_table():
    model, ids, options = sol_model(), prompts(), dict(max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert torch.equal(model.generate(ids, compute=1.0, **options), model.base.generate(ids, **options))
    assert budget_for([1.0, 1], None).bits == (16, 16)


def test_generate_and_score_take_the_budget_of_the_table(model):
    ids = prompts()
    options = dict(max_new_tokens=8, do_sample=False, return_dict_in_generate=True, pad_token_id=0)
    dial, budget = (
        model.generate(ids, compute=0.5, **options),
        model.generate(ids, budget=Budget(0.4, 0.6, 7), **options),
    )
    assert torch.equal(dial.sequences, budget.sequences) and torch.equal(dial.actions, budget.actions)
    assert len(set(dial.actions.flatten().tolist())) > 1
    scored = model.score(ids, context_length=12, compute=0.5)
    expected = model.score(ids, context_length=12, token_keep=0.4, mlp_keep=0.6, bits=7)
    assert torch.equal(scored.actions, expected.actions) and torch.equal(scored.logprobs, expected.logprobs)
    dense = model.score(ids, context_length=12, compute=1.0)
    assert torch.equal(dense.logprobs, model.score(ids, context_length=12).logprobs)


def test_a_stored_rate_yields_to_what_a_call_says(model):
    ids, expected = prompts(), {}
    for name, options in {"dial": dict(compute=0.5), "other": dict(token_keep=0.2), "top": dict(compute=0.7)}.items():
        expected[name] = model.score(ids, context_length=12, **options).actions
    model.generation_config.compute = 0.5
    assert torch.equal(model.score(ids, context_length=12).actions, expected["dial"])
    assert torch.equal(model.score(ids, context_length=12, token_keep=0.2).actions, expected["other"])
    assert torch.equal(model.score(ids, context_length=12, compute=0.7).actions, expected["top"])
    call = dict(max_new_tokens=4, do_sample=False, return_dict_in_generate=True, pad_token_id=0)
    given = model.generate(ids, generation_config=GenerationConfig(token_keep=0.2, **call))
    assert torch.equal(given.actions, model.generate(ids, token_keep=0.2, **call).actions)
    model.generation_config.bits = 8
    with pytest.raises(ValueError, match="sets both `compute` and bits"):
        model.score(ids, context_length=12)


def test_what_contradicts_itself_is_refused(model):
    ids = prompts()
    for other in (dict(bits=8), dict(budget=Budget(0.5))):
        with pytest.raises(ValueError, match="either `compute` or a budget"):
            model.score(ids, context_length=12, compute=0.5, **other)
    with pytest.raises(ValueError, match="did you mean `compute`"):
        model.generate(ids, comput=0.5)


def test_without_a_table_the_error_says_how_to_make_one():
    with pytest.raises(ValueError, match="needs a calibration table.*`sol-hf pareto POLICY --data .*--save"):
        sol_model().generate(prompts(), compute=0.5)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([], "is empty"),
        ([{"net_keep": 0.5}], "has the keys net_keep, token_keep"),
        ([point(0.4, 0.2, 0.5, 6, float("nan"))], "finite numbers"),
        ([point(0.4, 0.2, "half", 6, 3.0)], "finite numbers"),
        ([point(1.4, 0.2, 0.5, 6, 3.0)], r"must lie in \(0, 1\]"),
        ([point(0.4, 0.1, 0.5, 6, 3.0)], "below the smallest level"),
        ([TABLE[1], TABLE[0]], "must be a front"),
        ([TABLE[0], point(0.5, 0.6, 0.7, 8, 3.1)], "must be a front"),
    ],
)
def test_a_config_checks_its_table(table, message):
    with pytest.raises(ValueError, match=message):
        SOLConfig(**SETTINGS, calibration=table)


def test_a_table_is_saved_and_loaded(model, tmp_path):
    model.generation_config.compute = 0.6
    model.save_pretrained(tmp_path)
    loaded = SOLForCausalLM.from_pretrained(tmp_path, base=model.base)
    assert loaded.config.calibration == TABLE and loaded.generation_config.compute == 0.6
    assert loaded.config == SOLConfig.from_pretrained(tmp_path)


def test_saving_a_front_changes_nothing_else(tmp_path):
    model = sol_model()
    model.save_pretrained(tmp_path)
    before = json.loads((tmp_path / "config.json").read_text())
    front = [row | {"more": 1} for row in TABLE]
    summary = {"dense": {"log_perplexity": 2.3}, "controllers": {"policy": {"front": front}}}
    assert save_calibration(tmp_path, summary) == 4
    after = json.loads((tmp_path / "config.json").read_text())
    assert after == before | {"calibration": WITH_DENSE} and "auto_map" in after
    assert not list(tmp_path.glob("*.partial"))
    with pytest.raises(ValueError, match="must be a front"):
        save_calibration(tmp_path, summary | {"controllers": {"policy": {"front": front[::-1]}}})
    assert json.loads((tmp_path / "config.json").read_text()) == after


def test_a_front_can_only_be_saved_in_a_folder_and_with_a_policy(tmp_path):
    with pytest.raises(ValueError, match="goes into a local folder"):
        check_savable("someone/policy", ["policy"])
    sol_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="name `policy`"):
        check_savable(tmp_path, ["fixed"])
    check_savable(tmp_path, ["fixed", "policy"])


@pytest.mark.parametrize(
    ("quality", "rate"),
    [("0.7", 0.4), ("0.45", 0.5), ("0.2", 0.6), ("0.15", 0.65), ("0.1", 0.7), ("5", 0.4), ("1e-1", 0.7)],
)
def test_a_quality_takes_the_cheapest_setting_that_is_as_good(quality, rate):
    found, expected = budget_for(f"quality:{quality}", WITH_DENSE), budget_for(rate, WITH_DENSE)
    for axis in ("token_keep", "mlp_keep", "bits"):
        assert getattr(found, axis) == pytest.approx(getattr(expected, axis))
    loss = SOLConfig(**SETTINGS, calibration=WITH_DENSE).expected_loss(f"quality:{quality}")
    assert loss <= float(quality) + 1e-9 and loss == pytest.approx(min(float(quality), 0.7))


@pytest.mark.parametrize("call", ["generate", "score", "stored"])
def test_a_quality_is_an_option_of_calls_and_of_the_generation_config(model, call):
    model.config.calibration = [dict(row) for row in WITH_DENSE]
    ids, options = prompts(), dict(max_new_tokens=4, do_sample=False, return_dict_in_generate=True, pad_token_id=0)
    if call == "score":
        found, expected = (model.score(ids, context_length=12, compute=x) for x in ("quality:0.45", 0.5))
    elif call == "stored":
        expected = model.generate(ids, compute=0.5, **options)
        model.generation_config.compute = "quality:0.45"
        found = model.generate(ids, **options)
    else:
        found, expected = (model.generate(ids, compute=x, **options) for x in ("quality:0.45", 0.5))
    assert torch.equal(found.actions, expected.actions) and found.compute_unit == "net_keep"


def test_a_quality_that_no_setting_has_is_refused_before_any_compute(model):
    model.base.forward = None
    with pytest.raises(ValueError, match="no dense row.*make it again"):
        model.generate(prompts(), compute="quality:0.3")
    model.config.calibration = [dict(row) for row in WITH_DENSE]
    with pytest.raises(
        BudgetError, match=r"No setting .* within 0.02 nats .*the best measured one loses 0.1 at net_keep=0.7"
    ):
        model.generate(prompts(), compute="quality:0.02")
    for wrong in ("quality:", "quality:good", "quality:-1", "quality:nan", "qualty:0.1"):
        with pytest.raises(BudgetError, match="`compute` must be a number.*nats per token"):
            model.generate(prompts(), compute=wrong)
    with pytest.raises(ValueError, match="`compute` needs a calibration table.*`sol-hf pareto POLICY"):
        sol_model().generate(prompts(), compute="quality:0.02")


def test_a_stored_quality_is_saved_and_loaded(model, tmp_path):
    model.config.calibration, model.generation_config.compute = [dict(row) for row in WITH_DENSE], "quality:0.2"
    model.save_pretrained(tmp_path)
    assert SOLForCausalLM.from_pretrained(tmp_path, base=model.base).generation_config.compute == "quality:0.2"
