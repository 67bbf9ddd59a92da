# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A criterion that another package registers works wherever the package's own do, by plain torch."""

import pytest
import torch

from sol_hf import ScheduleController, SOLConfig
from sol_hf.costs.compute_costs import ComputeCosts
from sol_hf.episodes.counterfactuals import steps_run_together
from sol_hf.episodes.rollouts import prefill, roll_out
from sol_hf.evaluation.sweep.sweep import Sweep, SweepConfig
from sol_hf.selection.criterion import CRITERIA
from support.bases import tiny_base
from support.cases import HALF, SETTINGS, control, prompts
from support.extra_criterion import LongKeys, MiddlePages, registered


CONTEXT, STEPS = 21, SETTINGS["episode_length"]


@pytest.fixture(params=[LongKeys, MiddlePages])
def name(request):
    with registered("mine", request.param()):
        yield "mine"


def blocks_of(number: int = 2) -> torch.Tensor:
    return torch.randint(1, 99, (number, CONTEXT + STEPS + 1), generator=torch.Generator().manual_seed(5))


def noting(monkeypatch, name: str) -> list[int]:
    """Slots that the criterion was asked about, call by call."""
    seen, criterion = [], CRITERIA[name]
    select = criterion.select
    noted = lambda candidates, *rest: seen.append(candidates.slots) or select(candidates, *rest)  # noqa: E731
    monkeypatch.setattr(criterion, "select", noted)
    return seen


def test_the_config_knows_it_while_it_is_registered(tmp_path):
    with registered("mine", LongKeys()):
        SOLConfig(criterion="mine").save_pretrained(tmp_path)
        assert SOLConfig.from_pretrained(tmp_path).selection_rule.criterion == "mine"
        with pytest.raises(ValueError, match="`observe_page_fill` needs pages"):
            SOLConfig(criterion="mine", observe_page_fill=True)
    with pytest.raises(ValueError, match="Unknown criterion 'mine'"):
        SOLConfig(criterion="mine")
    with registered("mine", MiddlePages()):
        assert SOLConfig(criterion="mine", observe_page_fill=True).observe_page_fill


@pytest.mark.parametrize("backend", ["reference", "fast", "auto"])
def test_generate_and_score_read_its_keys(name, backend, monkeypatch):
    model, seen = control(tiny_base("llama", torch.float64), criterion=name), noting(monkeypatch, name)
    ids = prompts(2, 40)
    output = model.generate(ids, max_new_tokens=4, min_new_tokens=4, backend=backend, **HALF)
    assert output.shape == (2, 44)
    assert seen and set(seen) <= set(range(40, 44)), "no kernel that selects otherwise was used"
    schedule = ScheduleController(torch.full((STEPS, 2), model.action_space.index(0.2, 1.0, 16)))
    own, quest = (
        m.score(ids, context_length=34, controller=schedule, kv_refresh=False, backend=backend, return_logits=True)
        for m in (model, control(tiny_base("llama", torch.float64)))
    )
    assert (own.logits - quest.logits).abs().max() > 1e-3


def test_rollouts_over_a_shared_prefix_equal_rows_of_their_own(name):
    model, blocks, repeats = control(tiny_base("llama", torch.float64), criterion=name), blocks_of(), 3
    rows = len(blocks) * repeats
    actions = torch.randint(0, len(model.action_space), (STEPS, rows), generator=torch.Generator().manual_seed(7))
    schedule = ScheduleController(actions)
    shared = roll_out(model, prefill(model, blocks, CONTEXT), blocks, torch.full((rows, 3), 0.6), schedule)
    repeated = blocks.repeat_interleave(repeats, dim=0)
    alone = model.score(
        repeated, context_length=CONTEXT, controller=schedule, kv_refresh=False, budget_mode="soft", **HALF
    )
    torch.testing.assert_close(shared.label_logprobs, alone.logprobs.to(shared.label_logprobs.dtype))


@pytest.mark.parametrize("criterion, together", [(LongKeys, 1), (MiddlePages, 2)])
def test_a_criterion_that_does_not_say_so_sees_one_length_of_a_prefix(criterion, together):
    with registered("mine", criterion()):
        model = control(tiny_base("llama", torch.float64), criterion="mine")
        cache = prefill(model, blocks_of(), CONTEXT).cache
        groups = steps_run_together(STEPS, cache, model.config.selection_rule, CONTEXT)
    assert max(len(group) for group in groups) == together


def test_sweeps_and_costs(name, tmp_path):
    model = control(tiny_base("llama", torch.float64), criterion=name)
    costs, cheap = ComputeCosts.of(model, CONTEXT), model.action_space.index(0.2, 1.0, 16)
    assert float(costs.bytes[cheap]) < costs.dense_bytes
    settings = SweepConfig(controllers=("fixed",), budgets=((0.5, 0.5, 8.0),), context_length=CONTEXT, batch_size=2)
    table = Sweep(model, blocks_of(), settings, tmp_path).run()
    assert {row["controller"] for row in table} >= {"fixed"}


def test_cuda_graphs_are_refused(name):
    from sol_hf.execution.cuda_graphs import check_capture

    model = control(tiny_base("llama"), criterion=name)
    pytest.importorskip("triton")
    with pytest.raises(ValueError, match="need a criterion with kernels, such as 'quest' or 'sketch', not 'mine'"):
        check_capture(model.base, model.new_cache(), model.config.selection_rule)
