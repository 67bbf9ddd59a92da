# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""`compute` counts net keep rates, bytes or time, and says which."""

import json
import logging
import re

import pytest
import torch
from transformers import GenerationConfig

from sol_hf import Axis, Budget, BudgetError, SOLConfig, SOLForCausalLM, measure_speed
from sol_hf.budget.axes import AXES, register_axis
from sol_hf.evaluation.sweep.calibration_file import save_calibration
from sol_hf.execution.machine import describe_machine
from sol_hf.hub.model_card import build_card
from support.cases import SETTINGS, prompts, sol_model


def point(unit, cost, token_keep, mlp_keep, bits, log_perplexity) -> dict:
    return {unit: cost, "token_keep": token_keep, "mlp_keep": mlp_keep, "bits": bits, "log_perplexity": log_perplexity}


NET = [point("net_keep", 0.4, 0.2, 0.5, 6, 3.0), point("net_keep", 1.0, 1.0, 1.0, 16.0, 2.3)]
BYTES = [
    point("bytes", 0.3, 0.6, 0.7, 8, 2.9),
    point("bytes", 0.8, 0.6, 0.9, 10, 2.4),
    point("bytes", 1.0, 1, 1, 16, 2.3),
]
TIME = [point("time", 0.9, 0.2, 1.0, 16, 2.5), point("time", 1.0, 1.0, 1.0, 16.0, 2.3)]
CALL = dict(max_new_tokens=8, do_sample=False, return_dict_in_generate=True, pad_token_id=0)


def dial_model(calibration, dtype=torch.float32, **settings) -> SOLForCausalLM:
    model = sol_model(dtype=dtype)
    model.policy.float()
    model.config.calibration = [dict(row) for row in calibration]
    for name, value in settings.items():
        setattr(model.config, name, value)
    model.config.check()
    return model


class TestConfig:
    def test_a_config_of_before_counts_net_keep_rates(self, tmp_path):
        SOLConfig(**SETTINGS, calibration=NET).save_pretrained(tmp_path)
        path = tmp_path / "config.json"
        written = json.loads(path.read_text())
        assert written.pop("calibration_unit") == "net_keep" and "calibration_conditions" not in written
        path.write_text(json.dumps(written))
        config = SOLConfig.from_pretrained(tmp_path)
        assert config.compute_unit == "net_keep" and '"calibration_unit": "net_keep"' in repr(config)

    @pytest.mark.parametrize(("table", "unit"), [(NET, "net_keep"), (BYTES, "bytes"), (TIME, "time")])
    def test_the_unit_is_stored_and_shown(self, table, unit, tmp_path):
        config = SOLConfig(**SETTINGS, calibration=table, calibration_conditions={unit: {"dtype": "float32"}})
        config.save_pretrained(tmp_path)
        again = SOLConfig.from_pretrained(tmp_path)
        assert again.calibration == table and again.compute_unit == again.calibration_unit == unit
        assert f'"calibration_unit": "{unit}"' in repr(again)
        assert again.calibration_conditions == {unit: {"dtype": "float32"}}

    def test_without_a_calibration_nothing_is_said(self, tmp_path):
        config = SOLConfig(**SETTINGS)
        config.save_pretrained(tmp_path)
        assert config.compute_unit is None and "calibration_unit" not in (tmp_path / "config.json").read_text()

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            (
                dict(calibration=NET, calibration_unit="byte"),
                "`calibration_unit` must be one of net_keep, bytes, time",
            ),
            (dict(calibration=NET, calibration_unit="bytes"), "no table in `bytes`, only in `net_keep`"),
            (dict(calibration=BYTES[::-1]), "must be a front, `bytes` ascending"),
            (dict(calibration=[{**BYTES[0], "bytes": 1.2}]), r"`bytes` in `calibration` must lie in \(0, 1\]"),
            (dict(calibration=[{**BYTES[0], "time": 0.5}]), "has the keys bytes, token_keep"),
            (dict(calibration=BYTES, calibration_conditions={"byte": {}}), "has an object for each of net_keep"),
            (dict(calibration=BYTES, calibration_conditions={"bytes": 3}), "has an object for each of net_keep"),
            (dict(calibration=BYTES, calibration_conditions={"bytes": {"cpu": "x"}}), "context_length, dtype"),
            (dict(calibration=BYTES, calibration_conditions={"bytes": {"dtype": 3}}), "short strings, got 'dtype': 3"),
            (dict(calibration=BYTES, calibration_conditions={"bytes": {"dtype": "x" * 999}}), "short strings"),
        ],
    )
    def test_what_contradicts_itself_is_refused(self, settings, message):
        with pytest.raises(ValueError, match=message):
            SOLConfig(**SETTINGS, **settings)

    @pytest.mark.parametrize("name", ["bytes", "time", "net_keep", "log_perplexity"])
    def test_an_axis_cannot_have_the_name_of_a_column(self, name):
        register_axis(Axis(name, 1.0, 0.0, "something", (0.5, 1.0), "z", (0.5, 1.0)))
        try:
            with pytest.raises(ValueError, match=f"An axis cannot be named `{name}`"):
                SOLConfig(**SETTINGS, **{name: [0.5, 1.0]})
        finally:
            AXES.unregister(name)


class TestCalls:
    def test_the_unit_of_the_config_is_the_default(self):
        model, ids = dial_model(BYTES), prompts()
        output = model.generate(ids, compute=0.55, **CALL)
        budget = model.generate(ids, budget=Budget(0.6, 0.8, 9), **CALL)
        assert torch.equal(output.actions, budget.actions) and output.compute_unit == "bytes"
        assert budget.compute_unit is None
        scored = model.score(ids, context_length=12, compute=0.55)
        assert scored.compute_unit == "bytes" and "compute_unit" in scored
        assert model.generate(ids, compute=1.0, **CALL).compute_unit == "bytes"
        assert model.generate(ids, compute=0.55, num_beams=2, **CALL).compute_unit == "bytes"
        assert model.config.expected_loss(0.55) == pytest.approx(2.65 - 2.3)

    def test_a_call_may_ask_for_another_unit(self):
        model, ids = dial_model([*BYTES, *NET], calibration_unit="net_keep"), prompts()
        in_bytes, in_net = (model.generate(ids, compute=0.7, compute_unit=unit, **CALL) for unit in ("bytes", None))
        assert (in_bytes.compute_unit, in_net.compute_unit) == ("bytes", "net_keep")
        assert torch.equal(
            in_bytes.actions, model.generate(ids, token_keep=0.6, mlp_keep=0.86, bits=9.6, **CALL).actions
        )
        assert torch.equal(in_net.actions, model.generate(ids, token_keep=0.6, mlp_keep=0.75, bits=11, **CALL).actions)
        assert model.config.expected_loss(0.8, "bytes") == pytest.approx(0.1)
        model.generation_config.compute, model.generation_config.compute_unit = 0.7, "bytes"
        assert torch.equal(model.generate(ids, **CALL).actions, in_bytes.actions)
        config = GenerationConfig(compute=0.7, compute_unit="net_keep", **CALL)
        assert torch.equal(model.generate(ids, generation_config=config).actions, in_net.actions)

    def test_a_unit_that_the_calibration_lacks_is_an_error_that_names_what_there_is(self, monkeypatch):
        model, ids = dial_model([*NET, *BYTES]), prompts()
        monkeypatch.setattr(type(model.base), "forward", lambda *_, **__: pytest.fail("a forward"))
        message = "no table in `time`, only in `net_keep` .* and `bytes` .*`sol-hf pareto .* --unit time`"
        for run in (
            lambda: model.generate(ids, compute=0.5, compute_unit="time", **CALL),
            lambda: model.score(ids, context_length=12, compute=0.5, compute_unit="time"),
            lambda: model.config.expected_loss(0.5, "time"),
            lambda: measure_speed(model, ids[:1], [0.5], new_tokens=2, repeats=1, compute_unit="time"),
        ):
            with pytest.raises(ValueError, match=message):
                run()

    def test_what_makes_no_sense_is_refused(self):
        model, ids = dial_model(BYTES), prompts()
        with pytest.raises(BudgetError, match=r"must lie in 0.3..1 for this policy, in `bytes` \(share of the bytes"):
            model.generate(ids, compute=0.2, **CALL)
        with pytest.raises(ValueError, match="`compute_unit` must be one of net_keep, bytes, time, got 'byte'"):
            model.generate(ids, compute=0.5, compute_unit="byte", **CALL)
        with pytest.raises(ValueError, match="`compute_unit` says what `compute` counts: pass `compute` as well"):
            model.generate(ids, bits=8, compute_unit="bytes", **CALL)
        with pytest.raises(ValueError, match="did you mean `compute_unit`"):
            model.generate(ids, compute=0.5, compute_units="bytes", **CALL)

    def test_a_table_of_planes_does_not_hold_for_rounded_outputs(self, monkeypatch):
        model, ids = dial_model(BYTES, calibration_conditions={"bytes": {"bits_backend": "nested"}}), prompts()
        forward = type(model.base).forward
        monkeypatch.setattr(type(model.base), "forward", lambda *_, **__: pytest.fail("a forward"))
        message = "in `bytes` was measured with `bits_backend='nested'`, .* with 'fake': pass `bits_backend='nested'`"
        with pytest.raises(ValueError, match=message):
            model.generate(ids, compute=0.5, **CALL)
        monkeypatch.setattr(type(model.base), "forward", forward)
        assert model.generate(ids, compute=0.5, bits_backend="nested", **CALL).compute_unit == "bytes"
        model.generate(ids, compute=1.0, **CALL)  # the base itself
        model.generation_config.bits_backend = "nested"
        model.generate(ids, compute=0.5, **CALL)

    @pytest.mark.parametrize(
        ("unit", "other", "named"),
        [
            ("bytes", {"dtype": "bfloat16"}, "dtype bfloat16, here float32"),
            ("bytes", {"kv_refresh": "False"}, "kv_refresh False, here True"),
            ("bytes", {"budget_horizon": "episode"}, "budget_horizon episode, here generation"),
            ("time", {"machine": "Abacus 9", "threads": 77}, "machine Abacus 9, here .*threads 77, here"),
        ],
    )
    def test_a_table_of_elsewhere_is_a_warning(self, unit, other, named, caplog):
        here = {"dtype": "float32", **describe_machine(torch.device("cpu"))}
        table, ids = {"bytes": BYTES, "time": TIME}[unit], prompts()
        with caplog.at_level(logging.WARNING):
            dial_model(table, calibration_conditions={unit: here}).generate(ids, compute=0.95, **CALL)
            assert "measured otherwise" not in caplog.text
            dial_model(table, calibration_conditions={unit: here | other}).generate(ids, compute=0.95, **CALL)
        assert "measured otherwise" in caplog.text and re.search(named, caplog.text)

    def test_a_table_of_another_horizon_is_a_warning_in_net_keep_too_but_not_in_soft_mode(self, caplog):
        model = dial_model(NET, calibration_conditions={"net_keep": {"budget_horizon": "episode"}})
        with caplog.at_level(logging.WARNING):
            for options in ({"budget_mode": "soft"}, {"budget_horizon": "episode"}):
                model.generate(prompts(), compute=0.95, **options, **CALL)
            assert "measured otherwise" not in caplog.text
            model.generate(prompts(), compute=0.95, **CALL)
        assert "budget_horizon episode, here generation" in caplog.text

    def test_what_reports_compute_names_its_unit(self):
        model, ids = dial_model([*BYTES, *NET]), prompts(1)
        report = measure_speed(model, ids, [0.5], new_tokens=3, repeats=1)
        assert [row.name for row in report.rows][-1] == "compute=0.5 of bytes" and report.rows[-1].expected_loss > 0
        report = measure_speed(model, ids, [0.5], new_tokens=3, repeats=1, compute_unit="net_keep")
        assert [row.name for row in report.rows][-1] == "compute=0.5"


class TestFiles:
    SUMMARY = {"dense": {"log_perplexity": 2.3}, "controllers": {"policy": {"front": NET[:1]}}}

    def test_a_table_is_stored_beside_those_in_other_units(self, tmp_path):
        model = sol_model()
        model.save_pretrained(tmp_path)
        assert save_calibration(tmp_path, self.SUMMARY) == 2
        conditions = {"dtype": "float32", "context_length": 256, "bits_backend": "nested"}
        assert save_calibration(tmp_path, self.SUMMARY, "bytes", BYTES, conditions) == 3
        config = SOLConfig.from_pretrained(tmp_path)
        assert config.compute_unit == "bytes" and config.calibration_conditions == {"bytes": conditions}
        assert [row for row in config.calibration if "net_keep" in row] == NET
        assert [row for row in config.calibration if "bytes" in row] == BYTES
        card = (tmp_path / "README.md").read_text()
        assert "| `compute=` | 0.3 … 1: share of the bytes of a dense step (bits_backend nested, " in card
        assert '| `compute=` with `compute_unit="net_keep"` | 0.4 … 1: net keep rate' in card
        assert save_calibration(tmp_path, self.SUMMARY) == 2
        config = SOLConfig.from_pretrained(tmp_path)
        assert config.compute_unit == "net_keep" and len(config.calibration) == 5
        card = (tmp_path / "README.md").read_text()
        assert card.count("`compute=`") == 2 and "| `compute=` | 0.4 … 1: net keep rate" in card

    def test_a_card_that_was_written_by_hand_is_left_alone(self, tmp_path):
        sol_model().save_pretrained(tmp_path)
        (tmp_path / "README.md").write_text("# My policy\n")
        save_calibration(tmp_path, self.SUMMARY, "bytes", BYTES)
        assert (tmp_path / "README.md").read_text() == "# My policy\n"

    def test_a_new_card_says_what_compute_counts(self):
        conditions = {"time": {"machine": "Abacus 9", "threads": 2}}
        config = SOLConfig(**SETTINGS, calibration=TIME, calibration_conditions=conditions)
        assert "| `compute=` | 0.9 … 1: share of the time of a dense step (machine Abacus 9, threads 2) |" in str(
            build_card(config)
        )
        assert "compute=" not in str(build_card(SOLConfig(**SETTINGS)))
