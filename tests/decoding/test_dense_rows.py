# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Rows whose targets are dense, and steps that cannot be controlled: reported actions are what was computed."""

import pytest
import torch

from sol_hf import FixedController, PolicyController, RandomController, ScheduleController, SOLConfig, SOLForCausalLM
from support.bases import tiny_base
from support.cases import SETTINGS, control, prompts, sol_model


RUN = {"max_new_tokens": 9, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
TARGETS = {"token_keep": (1.0, 0.4), "mlp_keep": (1.0, 0.6), "bits": (16, 9)}
CONTROLLERS = {
    "none": lambda model: {},
    "policy": lambda model: {"controller": PolicyController(model.policy)},
    "fixed": lambda model: {"controller": FixedController(across_rows=False)},
}
LACKING = {"token_keep": [0.5, 1.0], "mlp_keep": [0.4, 0.7], "bits": [2, 16]}


@pytest.fixture(scope="module")
def model() -> SOLForCausalLM:
    return sol_model()


@pytest.fixture(scope="module")
def lacking() -> SOLForCausalLM:
    """A model whose action space has no dense action."""
    return control(tiny_base("llama", torch.float64), **LACKING)


@pytest.mark.parametrize("controller", CONTROLLERS)
@pytest.mark.parametrize("budget_mode", ["soft", "hard"])
@pytest.mark.parametrize("axis", TARGETS)
def test_a_dense_row_in_a_batch_is_the_row_alone(model, axis, budget_mode, controller):
    options = {**RUN, "budget_mode": budget_mode, **CONTROLLERS[controller](model)}
    together = model.generate(prompts(), **options, **{axis: list(TARGETS[axis])})
    for row, target in enumerate(TARGETS[axis]):
        alone = model.generate(prompts()[row : row + 1], **options, **{axis: target})
        assert torch.equal(together.realised[row], alone.realised[0])
        assert torch.equal(together.sequences[row], alone.sequences[0])
        assert torch.equal(together.actions[row], alone.actions[0])
        scores = [
            model.score(x.sequences, context_length=19, **o)
            for x, o in ((together, {axis: list(TARGETS[axis])}), (alone, {axis: target}))
        ]
        torch.testing.assert_close(scores[0].logprobs[row], scores[1].logprobs[0])


def test_the_policy_would_choose_otherwise(model):
    """Else the test above could not fail."""
    soft = model.generate(prompts()[:1], **RUN, bits=15.9, budget_mode="soft")
    assert soft.realised[0, 2] < 16


@pytest.mark.parametrize("budget_mode", ["soft", "hard"])
def test_dense_targets_without_a_dense_action(lacking, budget_mode):
    """Such a row runs at the largest levels, alone and in a batch, and says so."""
    dense, other = {"token_keep": 1.0, "mlp_keep": 1.0, "bits": 16}, {"token_keep": 0.6, "mlp_keep": 0.5, "bits": 9}
    both = {axis: [dense[axis], other[axis]] for axis in dense}
    together = lacking.generate(prompts(), **RUN, **both, budget_mode=budget_mode)
    alone = lacking.generate(prompts()[:1], **RUN, **dense, budget_mode=budget_mode)
    for output in (together, alone):
        assert output.realised[0].tolist() == pytest.approx([1.0, 0.7, 16.0])
        assert {lacking.action_space.table[action] for action in output.actions[0].tolist()} == {(1.0, 0.7, 16)}
        replay = ScheduleController(output.actions.T)
        scored = lacking.score(output.sequences, context_length=19, controller=replay, return_logits=True)
        torch.testing.assert_close(scored.logits, torch.stack(output.logits, dim=1).double(), atol=1e-4, rtol=1e-4)
    assert torch.equal(together.sequences[0], alone.sequences[0])


def test_steps_that_cannot_be_controlled_run_at_the_largest_levels(lacking):
    short = prompts(length=2)
    output = lacking.generate(short, **{**RUN, "max_new_tokens": 4}, token_keep=0.6, mlp_keep=0.5)
    assert [lacking.action_space.table[action] for action in output.actions[0].tolist()] == [(1.0, 0.7, 16)] * 4
    assert output.realised.tolist() == [pytest.approx([1.0, 0.7, 16.0])] * 2
    scored = lacking.score(output.sequences, context_length=1, token_keep=0.6, mlp_keep=0.5, return_logits=True)
    assert torch.equal(scored.realised, output.realised)
    torch.testing.assert_close(scored.logits, torch.stack(output.logits, dim=1).double(), atol=1e-4, rtol=1e-4)


def test_a_dense_score_names_no_action_where_there_is_none(lacking):
    scored = lacking.score(prompts(), context_length=9)
    assert scored.actions.eq(-1).all() and scored.realised.tolist() == [[1.0, 1.0, 16.0]] * 2


def test_a_random_schedule_reports_what_it_ran():
    model = SOLForCausalLM.from_base(tiny_base("llama", torch.float64), SOLConfig(**{**SETTINGS, **LACKING}))
    output = model.generate(prompts(), **RUN, token_keep=0.6, mlp_keep=0.5, bits=9, controller=RandomController(1))
    means = model.action_space.values[output.actions].mean(dim=1)
    torch.testing.assert_close(output.realised, means)
