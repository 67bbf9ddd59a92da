# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Scoring computes equal beginnings of rows once, and leaves out rows that have ended, without changing a value."""

import pytest
import torch

from sol_hf import (
    ActionProcessor,
    AxisBiasProcessor,
    DriftController,
    EntropyController,
    FixedController,
    ScheduleController,
)
from sol_hf.decoding import scoring
from sol_hf.decoding.aligned_rows import AlignedRows
from support.bases import FAMILIES
from support.cases import HALF, constant_schedule, left_padded, prompts, sol_model


CONTEXTS = [12, 12, 12, 9, 12, 9]


def family_tree() -> dict[str, torch.Tensor]:
    """Six rows of different lengths with 9 or 12 context tokens, of which several have the same beginning."""
    long, short = prompts(1, 24, seed=3)[0], prompts(1, 20, seed=4)[0]
    fork = long.clone()
    fork[16:] = short[:8]
    rows = [long, fork, long[:15], short, torch.cat([long[:12], short[4:10]]), short[:11]]
    return left_padded(rows)


def runs(monkeypatch) -> list[int]:
    """Rows of every decode step from now on."""
    rows: list[int] = []
    forward = scoring.decode_forward

    def counting(*args, **kwargs):
        rows.append(len(args[1].tokens))
        return forward(*args, **kwargs)

    monkeypatch.setattr(scoring, "decode_forward", counting)
    return rows


def one_by_one(model, **options) -> list:
    """Every row scored separately, with a new controller."""
    inputs, outputs = family_tree(), []
    for ids, mask, context in zip(inputs["input_ids"], inputs["attention_mask"], CONTEXTS, strict=True):
        made = {name: value() if name == "controller" else value for name, value in options.items()}
        outputs.append(model.score(ids[mask.bool()][None], context_length=context, return_logits=True, **made))
    return outputs


def assert_rows_are_as_alone(model, **options) -> None:
    made = {name: value() if name == "controller" else value for name, value in options.items()}
    together = model.score(**family_tree(), context_length=CONTEXTS, return_logits=True, **made)
    for row, alone in enumerate(one_by_one(model, **options)):
        steps = alone.actions.shape[1]
        assert together.step_mask[row].sum() == steps
        assert torch.equal(together.actions[row, :steps], alone.actions[0])
        assert together.actions[row, steps:].eq(-1).all() and together.logprobs[row, steps:].eq(0).all()
        assert torch.equal(together.greedy[row, :steps], alone.greedy[0]) and not together.greedy[row, steps:].any()
        close = dict(atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together.logprobs[row, :steps], alone.logprobs[0], **close)
        torch.testing.assert_close(together.logits[row, :steps], alone.logits[0], **close)
        torch.testing.assert_close(together.realised[row], alone.realised[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_run_as_one_get_what_they_get_alone(family):
    assert_rows_are_as_alone(sol_model(family), **HALF)


@pytest.mark.parametrize(
    "controller", [EntropyController, DriftController, lambda: FixedController(across_rows=False)]
)
@pytest.mark.parametrize("kv_refresh", [True, False])
def test_other_controllers(controller, kv_refresh):
    assert_rows_are_as_alone(sol_model(), **HALF, controller=controller, kv_refresh=kv_refresh)


def test_own_processors_and_criteria():
    assert_rows_are_as_alone(sol_model(), **HALF, action_processors=[AxisBiasProcessor(bits=0.5)])
    for criterion in ("relevancy", "recency"):
        model = sol_model()
        model.config.criterion = criterion
        assert_rows_are_as_alone(model, **HALF)


def test_how_many_rows_a_step_runs(monkeypatch):
    model, rows = sol_model(), runs(monkeypatch)
    model.score(**family_tree(), context_length=CONTEXTS, **HALF)
    # two contexts; a third branch opens at the first token after them, a fourth at the fifth; rows end one by one
    assert rows == [3, 3, 3, 3, 4, 3, 3, 3, 3, 3, 2]


@pytest.mark.parametrize(
    "options",
    [
        dict(controller=FixedController()),
        dict(do_sample_actions=True),
        dict(action_processors=[lambda ids, scores: scores]),
        dict(token_keep=[0.3, 0.4, 0.5, 0.6, 0.7, 0.8]),
    ],
    ids=["dealt over rows", "drawn", "foreign processor", "budgets by row"],
)
def test_rows_that_may_differ_run_by_themselves(options, monkeypatch):
    model, rows = sol_model(), runs(monkeypatch)
    model.score(**family_tree(), context_length=CONTEXTS, **{**HALF, **options})
    assert rows == [6] * 11


def test_contexts_are_shared_under_any_controller(monkeypatch):
    model, rows = sol_model(), []
    forward = scoring.dense_forward
    monkeypatch.setattr(scoring, "dense_forward", lambda *args: rows.append(len(args[1].tokens)) or forward(*args))
    schedule = ScheduleController(constant_schedule(model, "joint", 11))
    model.score(**family_tree(), context_length=CONTEXTS, controller=schedule)
    assert rows == [2]


def test_without_a_context():
    model, ids = sol_model(), prompts(3, 12)
    ids[1, :6] = ids[0, :6]
    together = model.score(ids, context_length=0, **HALF)
    for row in range(3):
        alone = model.score(ids[row : row + 1], context_length=0, **HALF)
        assert torch.equal(alone.actions[0], together.actions[row])
        torch.testing.assert_close(alone.logprobs[0], together.logprobs[row], atol=1e-5, rtol=1e-5)


def test_groups_are_named_by_their_first_rows():
    tokens = torch.tensor([[5, 1, 2], [4, 1, 2], [5, 1, 3], [4, 1, 2], [5, 1, 2]])
    rows = AlignedRows(tokens, torch.tensor([0, 0, 0, 1, 0]), 1, torch.ones(5, dtype=torch.long))
    leaders, group = rows.merge(2, torch.arange(5))
    assert leaders.tolist() == [0, 1, 3] and group.tolist() == [0, 1, 0, 2, 0]
    leaders, group = rows.merge(3, torch.tensor([2, 3, 4]))
    assert leaders.tolist() == [2, 3, 4] and group.tolist() == [0, 1, 2]


def test_a_processor_of_the_users_is_foreign():
    assert not isinstance(ActionProcessor(), scoring.OWN_PROCESSORS)
