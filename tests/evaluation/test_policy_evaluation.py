# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Evaluation of a policy and the fixed schedule: the losses are those of `score`, for any batch size and processes."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sol_hf import ActionSpace, Budget, BudgetError, FixedController, Observation, ScheduleController
from sol_hf.budget.ledger import BudgetLedger
from sol_hf.controllers.fixed import fixed_schedule
from sol_hf.evaluation.clusters import standard_error
from sol_hf.evaluation.policy_evaluation import BUDGETS, budgets_within, evaluate_budgets, format_table, to_rows
from support.bases import tiny_base
from support.cases import AXES, DENSE, HALF, SETTINGS, control
from support.paths import PYTHON_PATH, SUPPORT


CONTEXT, STEPS, BLOCKS = 20, SETTINGS["episode_length"], 5
WANTED = [(0.5, 0.5, 8), (0.3, 1.0, 12), (0.9, 0.6, 4)]
SCRIPT = SUPPORT / "evaluate_tiny.py"
SCALE = torch.tensor([1.0, 1.0, 16.0])


def model_of(spread: bool = True, family: str = "llama", **overrides):
    """A policy on a tiny base in float64; with `spread`, one that takes many different actions."""
    model = control(tiny_base(family, torch.float64), **overrides)
    if spread:
        generator = torch.Generator().manual_seed(1)
        for parameter in model.policy.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * 0.3
    return model


def blocks_of(number: int = BLOCKS, context: int = CONTEXT) -> torch.Tensor:
    return torch.randint(3, 99, (number, context + STEPS + 1), generator=torch.Generator().manual_seed(4))


def asked(requested) -> Budget:
    """The budget as a user of `generate` writes it: an axis that is to stay dense has no target."""
    targets = zip(AXES, requested, DENSE, strict=True)
    return Budget(**{axis: value for axis, value, dense in targets if value != dense})


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_losses_and_means_are_those_of_score(family, hard):
    model, blocks = model_of(family=family), blocks_of()
    for found in evaluate_budgets(model, blocks, CONTEXT, WANTED, hard=hard, batch_size=2):
        mode = "hard" if hard else "soft"
        scored = model.score(blocks, context_length=CONTEXT, budget=asked(found.requested), budget_mode=mode)
        torch.testing.assert_close(torch.tensor(found.losses), -scored.logprobs.mean(1).float(), atol=1e-5, rtol=0)
        torch.testing.assert_close(torch.tensor(found.realised), scored.realised.mean(0), atol=1e-5, rtol=0)
        excess = (scored.realised - torch.tensor(found.requested)).double()
        torch.testing.assert_close(torch.tensor(found.worst_overshoot), excess.amax(0).float(), atol=1e-5, rtol=0)
        torch.testing.assert_close(torch.tensor(found.mean_overshoot), excess.mean(0).float(), atol=1e-5, rtol=0)
        assert found.budget_error == pytest.approx((excess / SCALE).abs().mean().item(), abs=1e-5)
        assert len(set(found.losses)) == BLOCKS


def test_an_axis_that_a_budget_leaves_dense_stays_dense():
    budgets = [(0.5, 1.0, 16), (1.0, 0.6, 16), (1.0, 1.0, 6), (0.5, 0.6, 6), (1.0, 1.0, 16)]
    free, *_ = evaluate_budgets(model_of(), blocks_of(), CONTEXT, [(0.5, 0.9, 15)])
    assert free.realised[1] < 1 and free.realised[2] < 16  # the policy itself would go below
    for found in evaluate_budgets(model_of(), blocks_of(), CONTEXT, budgets):
        for wanted, spent, fixed, dense in zip(
            found.requested, found.realised, found.fixed_realised, DENSE, strict=True
        ):
            assert wanted != dense or spent == fixed == dense
        scored = model_of().score(
            blocks_of(), context_length=CONTEXT, budget=asked(found.requested), budget_mode="soft"
        )
        assert found.losses == pytest.approx((-scored.logprobs.mean(1)).tolist(), abs=1e-5)


def test_the_fixed_schedule_is_taken_at_what_the_policy_spent():
    model, blocks = model_of(), blocks_of()
    for found in evaluate_budgets(model, blocks, CONTEXT, WANTED, batch_size=2):
        means = torch.tensor(found.realised) / SCALE
        schedule = fixed_schedule(means, BLOCKS, torch.ones(STEPS, dtype=torch.bool), model.action_space)
        scored = model.score(blocks, context_length=CONTEXT, controller=ScheduleController(schedule.T))
        torch.testing.assert_close(
            torch.tensor(found.fixed_losses), -scored.logprobs.mean(1).float(), atol=1e-5, rtol=0
        )
        torch.testing.assert_close(torch.tensor(found.fixed_realised), scored.realised.mean(0), atol=1e-5, rtol=0)
        assert found.gain == pytest.approx(math.log(found.fixed_perplexity / found.perplexity), abs=1e-9)
        gains = torch.tensor(found.fixed_losses).double() - torch.tensor(found.losses).double()
        assert found.gain_error == pytest.approx((gains.std() / BLOCKS**0.5).item(), abs=1e-7)


def test_in_hard_mode_a_text_of_one_episode_exceeds_its_budget_by_one_step_at_most():
    model, blocks = model_of(), blocks_of()
    soft, hard = (evaluate_budgets(model, blocks, CONTEXT, WANTED, hard=hard) for hard in (False, True))
    for found in hard:
        values = zip(found.worst_overshoot, found.requested, DENSE, strict=True)
        assert all(worst <= (dense - wanted) / STEPS + 1e-4 for worst, wanted, dense in values)
    assert max(max(found.worst_overshoot) for found in soft) > 0.1


def test_in_hard_mode_over_episodes_no_episode_exceeds_its_budget():
    model, blocks = model_of(), blocks_of()
    model.generation_config.budget_horizon = "episode"
    hard = evaluate_budgets(model, blocks, CONTEXT, WANTED, hard=True)
    assert max(max(found.worst_overshoot) for found in hard) <= 1e-4


def test_an_untrained_policy_with_a_prior_gains_nothing():
    # At targets that an episode can meet it is the fixed schedule, so both passes have to find the same.
    model = model_of(spread=False, budget_prior=True, bits=[4, 10, 16])
    for found in evaluate_budgets(model, blocks_of(), CONTEXT, [(0.4, 0.5, 7), (0.6, 0.85, 12), (1.0, 1.0, 16)]):
        assert found.fixed_losses == found.losses and found.gain == 0 == found.gain_error
        assert found.fixed_realised == found.realised == pytest.approx(found.requested, abs=1e-6)
        assert found.budget_error < 1e-6


def test_the_batch_size_changes_nothing():
    model, blocks = model_of(), blocks_of()
    one, other = (evaluate_budgets(model, blocks, CONTEXT, WANTED, batch_size=size, dense=True) for size in (1, 4))
    for first, second in zip(one, other, strict=True):
        assert first.realised == second.realised and first.fixed_realised == second.fixed_realised
        for name in ("losses", "fixed_losses", "dense_losses"):
            assert getattr(first, name) == pytest.approx(getattr(second, name), abs=1e-5)


def test_steps_after_a_short_context_do_not_count():
    model, blocks = model_of(), blocks_of(context=5)
    for found in evaluate_budgets(model, blocks, 5, WANTED):
        scored = model.score(blocks, context_length=5, budget=asked(found.requested), budget_mode="soft")
        torch.testing.assert_close(torch.tensor(found.realised), scored.realised.mean(0), atol=1e-5, rtol=0)
        distance = (torch.tensor(found.realised) - torch.tensor(found.fixed_realised)).abs() / SCALE
        assert distance.max() <= 0.5 / (BLOCKS * 4)


def test_the_dense_loss_is_that_of_the_base():
    model, blocks = model_of(), blocks_of()
    found = evaluate_budgets(model, blocks, CONTEXT, WANTED[:1], dense=True)[0]
    scored = model.score(blocks, context_length=CONTEXT)
    assert found.dense_losses == pytest.approx((-scored.logprobs.mean(1)).tolist(), abs=1e-5)
    assert found.dense_perplexity == pytest.approx(scored.logprobs.mean().neg().exp().item(), rel=1e-5)
    plain = evaluate_budgets(model, blocks, CONTEXT, WANTED[:1])[0]
    assert plain.dense_perplexity is None and plain.losses == found.losses


def test_dropout_is_off_and_modes_come_back():
    model, blocks = model_of(), blocks_of()
    expected = evaluate_budgets(model, blocks, CONTEXT, WANTED)
    model.policy.layers[0].mlp.append(torch.nn.Dropout(0.5))
    model.policy.train()
    model.policy.final_norm.eval()
    assert evaluate_budgets(model, blocks, CONTEXT, WANTED) == expected
    assert model.policy.training and not model.policy.final_norm.training


@settings(max_examples=200, deadline=None)
@given(data=st.data(), blocks=st.integers(1, 9), steps=st.integers(1, 16), seed=st.integers(0, 10**6))
def test_a_fixed_schedule_meets_its_means(data, blocks, steps, seed):
    percents = st.lists(st.integers(1, 100), min_size=1, max_size=4, unique=True)
    keeps = [[p / 100 for p in data.draw(percents)] for _ in range(2)]
    space = ActionSpace(*keeps, data.draw(st.lists(st.integers(2, 16), min_size=1, max_size=4, unique=True)))
    generator = torch.Generator().manual_seed(seed)
    spread = space.max_ratio() - space.min_ratio()
    means = space.min_ratio() + torch.rand(3, generator=generator) * spread
    counted = torch.ones(steps, dtype=torch.bool)
    counted[: data.draw(st.integers(0, steps - 1))] = False
    each = int(counted.sum())
    schedule = fixed_schedule(means, blocks, counted, space)
    assert (schedule[:, ~counted] == space.dense_id).all()
    levels = space.ratios[schedule[:, counted]]
    assert ((levels.mean(dim=(0, 1)) - means).abs() <= 0.5 * spread / (blocks * each) + 1e-4).all()
    assert ((levels.mean(dim=1) - means).abs() <= spread / each + 1e-4).all()


@pytest.mark.parametrize("means", [(0.5, 0.5, 0.5), (0.2, 1.0, 0.7), (0.31, 0.47, 0.93)])
def test_the_fixed_schedule_is_that_of_a_lone_row(means):
    model, targets = model_of(), torch.tensor([means])
    schedule = fixed_schedule(targets[0], 4, torch.ones(STEPS, dtype=torch.bool), model.action_space)
    controller, nothing, taken = FixedController(carry=AXES), torch.zeros(1, 1), []
    for step in range(4 * STEPS):
        observation = Observation(
            hidden_state=nothing,
            token_embedding=nothing,
            previous_action=torch.zeros(1, dtype=torch.long),
            controllable=torch.ones(1, dtype=torch.bool),
            remaining=torch.ones(1),
            step=step % STEPS,
            total_step=step,
            episode_length=STEPS,
            targets=targets,
            ledger=BudgetLedger(1, model.action_space),
            action_space=model.action_space,
            state={},
            page_fill=torch.ones(1),
        )
        taken.append(int(controller(observation).argmax()))
    assert schedule.flatten().tolist() == taken


def test_the_default_budgets_are_brought_into_an_action_space():
    full = control(tiny_base("llama"), token_keep=[0.1, 1.0], mlp_keep=[0.4, 1.0], bits=[5, 16]).action_space
    assert budgets_within(full) == list(BUDGETS)
    one_axis = ActionSpace([0.5, 1.0], [1.0], [16])
    assert budgets_within(one_axis) == [(0.5, 1.0, 16), (0.7, 1.0, 16), (1.0, 1.0, 16), (0.8, 1.0, 16)]


def test_losses_that_are_no_numbers_are_an_error():
    model = model_of()
    model.base.lm_head.weight.data[5] = math.inf
    with pytest.raises(ValueError, match=f"losses of {BLOCKS} of {BLOCKS} blocks are infinite or undefined, first"):
        evaluate_budgets(model, blocks_of(), CONTEXT, WANTED)


def test_errors_are_over_documents():
    apart, together = (
        evaluate_budgets(model_of(), blocks_of(), CONTEXT, WANTED[1:2], documents=documents)[0]
        for documents in (None, [4, 4, 4, 9, 9])
    )
    assert apart.losses == together.losses and together.documents == (4, 4, 4, 9, 9)
    assert together.gain_error == standard_error(together.gains, [4, 4, 4, 9, 9]) != apart.gain_error


def test_rows_and_table():
    found = evaluate_budgets(model_of(), blocks_of(), CONTEXT, WANTED)
    rows = json.loads(json.dumps(to_rows(found)))
    assert [(row["token_keep"], row["mlp_keep"], row["bits"]) for row in rows] == WANTED
    assert [row["realised_bits"] for row in rows] == [x.realised[2] for x in found]
    assert rows[0]["gain"] == found[0].gain and rows[0]["blocks"] == BLOCKS
    assert "dense_perplexity" not in rows[0]
    header, rule, *lines = format_table(found).splitlines()
    assert header.count("|") == rule.count("|") == lines[0].count("|") == 8
    assert len(lines) == 3 and lines[0].startswith("| 0.5 / 0.5 / 8 | ")
    assert f"{found[2].gain:+.4f} ± {found[2].gain_error:.4f}" in lines[2]
    dense = evaluate_budgets(model_of(), blocks_of(), CONTEXT, WANTED, dense=True)
    assert format_table(dense).splitlines()[0].endswith("| dense |")
    assert to_rows(dense)[0]["dense_perplexity"] == dense[0].dense_perplexity
    assert "losses" not in repr(dense[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(budgets=[]), "no budget"),
        (dict(budgets=[(0.5, 0.5)]), "one number per axis"),
        (dict(budgets=[(0.1, 0.5, 8)]), "below the smallest level"),
        (dict(budgets=[(0.5, 0.5, 0.5)]), r"must lie in 2\.\.16"),
        (dict(context_length=CONTEXT - 1), f"a block has {CONTEXT + STEPS} tokens"),
        (dict(blocks=blocks_of()[:, 1:]), f"a block has {CONTEXT + STEPS + 1} tokens"),
        (dict(blocks=blocks_of()[0]), "do not fit"),
        (dict(blocks=blocks_of(1)), "2 blocks or more"),
        (dict(blocks=torch.tensor([])), "2 blocks or more, got 0: give more text"),
        (dict(documents=[0, 1]), f"2 documents for {BLOCKS} blocks"),
        (dict(blocks=blocks_of(context=1), context_length=1), "no step of an episode is controllable"),
        (dict(batch_size=0), "at least 1"),
    ],
)
def test_wrong_arguments_are_refused(change, message):
    arguments = dict(blocks=blocks_of(), context_length=CONTEXT, budgets=[tuple(HALF.values())])
    with pytest.raises(ValueError, match=message) as error:
        evaluate_budgets(model_of(), **{**arguments, **change})
    assert isinstance(error.value, BudgetError) == ("below" in message or "lie in" in message)


def evaluated(folder: Path, processes: int, *options: str) -> list[dict]:
    """Results of the script in `processes` processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = {**os.environ, "PYTHONPATH": PYTHON_PATH, "HF_HUB_OFFLINE": "1", "CI": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([*launcher, str(SCRIPT), str(folder), *options], check=True, env=environment, timeout=240)
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    assert len(found) == processes and all(rows == found[0] for rows in found)
    return found[0]


@pytest.mark.slow
def test_two_processes_find_what_one_does(tmp_path):
    one, two = evaluated(tmp_path / "one", 1), evaluated(tmp_path / "two", 2)
    assert one == two
    assert len(one) == len(BUDGETS) and len({row["realised"][0] for row in one}) > 1
