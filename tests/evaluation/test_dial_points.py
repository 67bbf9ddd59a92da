# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The front of a sweep in bytes and in time, as `compute` counts them."""

import pytest
import torch

from sol_hf import SOLConfig, SOLForCausalLM
from sol_hf.evaluation.speed import BASE, DENSE, Speed, SpeedReport
from sol_hf.evaluation.sweep import dial_points as module
from sol_hf.evaluation.sweep.calibration_file import save_calibration
from sol_hf.evaluation.sweep.dial_points import DialSetting, dial_points, save_dial
from sol_hf.evaluation.sweep.summary import summarize_sweep
from sol_hf.evaluation.sweep.sweep import Sweep, SweepConfig
from sol_hf.evaluation.sweep.table import read_table
from sol_hf.execution.machine import describe_machine
from support.bases import tiny_base
from support.cases import control, prompts
from support.new_axes import FOUR


CONTEXT, STEPS = 20, 6


def blocks_of(number: int = 3) -> torch.Tensor:
    return torch.randint(3, 99, (number, CONTEXT + STEPS + 1), generator=torch.Generator().manual_seed(4))


def row(net_keep, share, token_keep, bits, log_perplexity) -> dict:
    costs = {"net_keep": net_keep, "bytes_per_token": share * 1000.0, "dense_bytes_per_token": 1000.0}
    return costs | {"token_keep": token_keep, "mlp_keep": 1.0, "bits": bits, "log_perplexity": log_perplexity}


ROWS = [
    row(0.5, 0.3, 0.6, 8, 2.6),
    row(0.4, 0.9, 0.2, 8, 2.9),
    row(0.7, 0.6, 1.0, 8, 2.4),
    row(0.8, 1.1, 0.6, 16, 2.3),
]
"""The second is on the front of net keep rates, but dominated in bytes; the last reads more than a dense step."""


def test_a_front_in_bytes_is_another_one_than_that_of_net_keep_rates():
    model = control(tiny_base("llama"))
    in_bytes, in_net = (
        dial_points(ROWS, model, blocks_of(), DialSetting(unit, CONTEXT, False)) for unit in ("bytes", "net_keep")
    )
    assert [(point["bytes"], point["token_keep"]) for point in in_bytes] == [(0.3, 0.6), (0.6, 1.0)]
    assert [point["net_keep"] for point in in_net] == [0.4, 0.5, 0.7, 0.8]
    assert all(set(point) == {"bytes", "token_keep", "mlp_keep", "bits", "log_perplexity"} for point in in_bytes)


def test_a_sweep_without_a_budget_that_saves_something_says_so():
    model, setting = control(tiny_base("llama")), DialSetting("bytes", CONTEXT, False)
    with pytest.raises(
        ValueError, match="No budget of this sweep costs less than a dense step in `bytes`: .* 1.100 of"
    ):
        dial_points(ROWS[3:], model, blocks_of(), setting)


def test_time_is_that_of_our_own_dense_step_in_the_same_rounds(monkeypatch):
    model, seen = control(tiny_base("llama")), {}
    per_second = [(20.0, 10.0, 40.0), (8.0, 5.0, 20.0), (12.0, 6.0, 20.0), (10.0, 5.0, 20.0)]  # of the rounds

    def measured(own, prompt, budgets, **options):
        seen.update(options, prompt=tuple(prompt.shape))
        speeds = {BASE: (1.0, 1.0, 1.0), DENSE: (10.0, 5.0, 20.0)}
        speeds |= {repr(budget): rounds for budget, rounds in zip(budgets, per_second, strict=True)}
        return SpeedReport(tuple(Speed(name, rounds, 1.0, 1.0) for name, rounds in speeds.items()), "")

    monkeypatch.setattr(module, "measure_speed", measured)
    points = dial_points(ROWS, model, blocks_of(), DialSetting("time", CONTEXT, True))
    assert [(point["time"], point["token_keep"]) for point in points] == [(0.5, 0.6), (pytest.approx(5 / 6), 1.0)]
    assert seen == {"new_tokens": 13, "repeats": 3, "budget_mode": "hard", "prompt": (1, CONTEXT)}


def test_times_are_really_measured():
    model = control(tiny_base("llama"))
    model.policy.float()
    times = module._times(
        model, [module.Budget(token_keep=0.5), module.Budget(bits=8)], blocks_of()[:1, :CONTEXT], True
    )
    assert len(times) == 2 and all(0.01 < time < 100 for time in times)


def test_the_conditions_of_a_table_are_stated():
    model = control(tiny_base("llama", torch.bfloat16))
    assert DialSetting("net_keep", CONTEXT, True).conditions(model) == {}
    model.generation_config.bits_backend = "nested"
    assert DialSetting("net_keep", CONTEXT, True).conditions(model) == {"bits_backend": "nested"}
    in_bytes = {"context_length": 20, "dtype": "bfloat16", "bits_backend": "nested", "budget_mode": "hard"}
    in_bytes |= {"kv_refresh": "True"}
    assert DialSetting("bytes", CONTEXT, True).conditions(model) == in_bytes
    machine = describe_machine(torch.device("cpu"))
    assert machine["machine"] and machine["threads"] == torch.get_num_threads()
    assert DialSetting("time", CONTEXT, True).conditions(model) == in_bytes | machine
    model.generation_config.budget_horizon = "episode"
    assert DialSetting("bytes", CONTEXT, True).conditions(model) == in_bytes | {"budget_horizon": "episode"}
    assert DialSetting("net_keep", CONTEXT, True).conditions(model)["budget_horizon"] == "episode"
    assert "budget_horizon" not in DialSetting("bytes", CONTEXT, False).conditions(model)


def test_a_dial_in_bytes_is_made_from_a_sweep_over_four_axes_and_spends_what_it_says(tmp_path):
    """The base is large beside its policy, so that planes are worth something."""
    sizes = dict(hidden_size=128, intermediate_size=512, num_hidden_layers=2)
    settings = {**FOUR, "policy_hidden_size": 4, "policy_num_heads": 1, "action_embedding_size": 1}
    model = control(tiny_base("llama", **sizes), **settings, budget_prior=True, action_head="factored")
    model.policy.float()
    model.generation_config.bits_backend = "nested"
    model.save_pretrained(tmp_path / "policy")
    budgets = ((0.6, 0.8, 5.0, 0.7), (0.8, 1.0, 8.0, 1.0))
    config, blocks = SweepConfig(("policy",), budgets, CONTEXT, hard=True), blocks_of()
    table = Sweep(model, blocks, config, tmp_path / "sweep").run()
    summary = summarize_sweep(table, read_table(tmp_path / "sweep", "blocks"))
    setting = DialSetting("bytes", CONTEXT, True)
    said = save_dial(tmp_path / "policy", tmp_path / "sweep", summary, model, blocks, setting)
    assert "generate(compute=...) is a share of the bytes of a dense step (bits_backend nested, " in said

    loaded = SOLForCausalLM.from_pretrained(tmp_path / "policy", base=model.base)
    assert loaded.config.compute_unit == "bytes"
    *points, dense = loaded.config.calibration
    shares = {(row["token_keep"], row["bits"]): row["bytes_per_token"] / row["dense_bytes_per_token"] for row in table}
    assert points and dense["bytes"] == 1.0
    for found in points:
        assert found["bytes"] == pytest.approx(shares[found["token_keep"], found["bits"]])
        options = dict(max_new_tokens=12, do_sample=False, return_dict_in_generate=True, pad_token_id=0)
        output = loaded.generate(prompts(1), compute=found["bytes"], **options)
        assert output.compute_unit == "bytes"
        assert (
            output.realised[0] <= torch.tensor([found[axis] for axis in loaded.action_space.axis_names]) + 0.5
        ).all()


def test_a_unit_that_there_is_not_is_refused(tmp_path):
    SOLConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`unit` must be one of net_keep, bytes, time, got 'flops'"):
        save_calibration(tmp_path, {}, "flops")
