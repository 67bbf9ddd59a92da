# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Spending of tasks over three and over four axes."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sol_hf import ActionSpace, SOLConfig, SOLForCausalLM
from sol_hf.integrations.lm_eval_spending import Spending, format_report
from sol_hf.selection.rule import SelectionRule
from support.extra_axis import four_axes


def test_spending_has_a_mean_per_axis(mlp_noise):
    space = four_axes()
    spending = Spending(space, SelectionRule())
    cheap, dense = space.index(0.2, 0.5, 4, 0.5), space.index(1.0, 1.0, 16, 1.0)
    spending.add("first", torch.tensor([[cheap, dense, -1]]), [20])
    spending.add("first", torch.tensor([[cheap, cheap, cheap]]), [20])
    spending.add("short", torch.tensor([[cheap]]), [1])
    report = spending.report()
    expected = {"token_keep": 0.36, "mlp_keep": 0.6, "bits": 6.4, "mlp_noise": 0.6, "net_keep": 0.49}
    assert report["first"] == pytest.approx(expected | {"controllable_steps": 5, "steps": 5})
    dense_levels = {"token_keep": 1.0, "mlp_keep": 1.0, "bits": 16.0, "mlp_noise": 1.0, "net_keep": 1.0}
    assert report["short"] == dense_levels | {"controllable_steps": 0, "steps": 1}
    two = spending.report([spending.sums, spending.sums])
    assert two["first"] == pytest.approx(expected | {"controllable_steps": 10, "steps": 10})


def test_the_published_axes_are_as_they_were():
    space = ActionSpace([0.2, 1.0], [0.5, 1.0], [4, 16])
    spending = Spending(space, SelectionRule())
    spending.add("task", torch.tensor([[space.index(0.2, 1.0, 4)]]), [20])
    names = ["token_keep", "mlp_keep", "bits", "net_keep", "controllable_steps", "steps"]
    assert list(spending.report()["task"]) == names


def test_the_share_of_the_bytes_is_a_mean_over_steps():
    space = ActionSpace([0.2, 1.0], [0.5, 1.0], [4, 16])
    spending = Spending(space, SelectionRule(), lambda actions, contexts: contexts / 100)
    spending.add("task", torch.tensor([[0, 0, 0], [0, -1, -1]]), [20, 60])
    assert spending.report()["task"]["bytes_share"] == pytest.approx((0.2 * 3 + 0.6) / 4)
    settings = dict(controller="policy", budget_mode="hard", budget={"token_keep": 0.2}, realised=spending.report())
    assert "|net keep|bytes|" in format_report(settings).replace(" ", "").replace("netkeep", "net keep")


def test_a_task_reports_the_bits_that_were_read(base):
    from lm_eval.api.instance import Instance

    from sol_hf.integrations.lm_eval_adapter import SOLLM

    config = SOLConfig(token_keep=[1.0], mlp_keep=[1.0], bits=[3, 7, 16], episode_length=4, policy_hidden_size=32)
    model = SOLForCausalLM.from_base(AutoModelForCausalLM.from_pretrained(base), config)
    settings = dict(tokenizer=AutoTokenizer.from_pretrained(base), controller="fixed", batch_size=1)
    reported = {}
    for bits_backend in ("fake", "nested"):
        lm = SOLLM(model, bits=7 if bits_backend == "fake" else 8, bits_backend=bits_backend, **settings)
        request = Instance("loglikelihood", {}, ("The sea is wide and", " deep and blue"), 0, ("task", 0, 1))
        lm.loglikelihood([request])
        (task,) = lm.spending.report().values()
        reported[bits_backend] = task["bits"]
        assert 0 < task["bytes_share"] < 10 and task["net_keep"] == pytest.approx((2 + task["bits"] / 16) / 3)
    assert reported == {"fake": 7, "nested": 8}
    with pytest.raises(ValueError, match="`bits`=3 is below what the smallest level .* is carried out with, 4"):
        SOLLM(model, bits=3, bits_backend="nested", **settings)
