# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A policy in texts of several episodes, by the horizon of its budget."""

import pytest
import torch

from sol_hf import ScheduleController
from sol_hf.controllers.fixed import fixed_schedule
from sol_hf.evaluation.horizons import WAYS, horizons_table, measure_horizons
from support.bases import tiny_base
from support.cases import AXES, control


CONTEXT, STEPS = 12, 14
BUDGETS = [(0.5, 0.6, 8.0), (0.4, 1.0, 16.0)]


@pytest.fixture
def model():
    model = control(tiny_base("llama"))
    for parameter in model.policy.parameters():
        parameter.data.normal_(std=0.5)
    return model


def texts() -> torch.Tensor:
    return torch.randint(1, 99, (3, CONTEXT + STEPS + 1), generator=torch.Generator().manual_seed(3))


def test_what_is_measured_is_what_score_gives(model):
    found = {(tuple(x.budget.values()), x.way): x for x in measure_horizons(model, texts(), CONTEXT, BUDGETS)}
    assert len(found) == 2 * len(WAYS)
    result, budget = found[(0.5, 0.6, 8.0), "generation"], dict(token_keep=0.5, mlp_keep=0.6, bits=8)
    score = dict(context_length=CONTEXT, return_logits=True)
    output, dense = model.score(texts(), **budget, **score), model.score(texts(), **score)
    assert list(result.spent.values()) == pytest.approx(output.realised.mean(0).tolist(), abs=1e-5)
    targets = torch.tensor([0.5, 0.6, 0.5])
    distance = (output.realised / torch.tensor([1, 1, 16]) - targets).abs().mean()
    assert result.distance == pytest.approx(float(distance), abs=1e-6)
    means = torch.tensor([result.spent[axis] for axis in AXES]) / torch.tensor([1, 1, 16])
    schedule = fixed_schedule(means, 3, torch.ones(STEPS, dtype=torch.bool), model.action_space)
    fixed = model.score(texts(), controller=ScheduleController(schedule.T), **score)
    expected = []
    for other in (output, fixed):
        logprobs = [x.logits.double().log_softmax(-1) for x in (dense, other)]
        expected.append(float((logprobs[0].exp() * (logprobs[0] - logprobs[1])).sum(-1).mean()))
    assert [result.divergence[0], result.fixed[0]] == pytest.approx(expected, abs=1e-6)
    assert result.difference[0] == pytest.approx(expected[0] - expected[1], abs=1e-6)

    only = found[(0.4,), "exact"]
    assert only.spent["mlp_keep"] == 1 and only.spent["bits"] == 16
    assert only.spent["token_keep"] <= 0.4 + 1e-4
    assert found[(0.4,), "generation"].spent["token_keep"] <= 0.4 + 0.6 / STEPS + 1e-4
    assert len(horizons_table(list(found.values())).splitlines()) == 2 + len(found)


def test_what_there_is_not_is_refused_before_any_compute(model):
    model.base.forward = None
    with pytest.raises(ValueError, match="Unknown ways to keep a budget: forever. There are generation, exact"):
        measure_horizons(model, texts(), CONTEXT, BUDGETS, ["forever"])
    with pytest.raises(ValueError, match="below the smallest level"):
        measure_horizons(model, texts(), CONTEXT, [(0.01, 1.0, 16.0)])
