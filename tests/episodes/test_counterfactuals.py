# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Measured costs of single steps: a probe has the same result as a separate row."""

import pytest
import torch

from sol_hf import ScheduleController
from sol_hf.episodes import counterfactuals
from sol_hf.episodes.counterfactuals import Counterfactuals, Probes, measure
from sol_hf.episodes.rollouts import prefill, roll_out
from support.bases import tiny_base
from support.cases import SETTINGS, control


CONTEXT, STEPS = 20, SETTINGS["episode_length"]


def check_close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5, check_dtype=False)


def problem(family="llama", **settings):
    model = control(tiny_base(family, torch.float64), **settings)
    generator = torch.Generator().manual_seed(5)
    blocks = torch.randint(1, 99, (2, CONTEXT + STEPS + 1), generator=generator)
    actions = torch.randint(len(model.action_space), (2, STEPS), generator=generator)
    return model, blocks, Probes.of(model.action_space), actions


SKETCH = {"criterion": "sketch", "selection": "layer"}


def test_a_probe_is_one_axis_at_one_level():
    space = control(tiny_base("llama")).action_space
    probes = Probes.of(space)
    assert probes.axes == (0, 0, 1, 1, 2, 2)
    assert probes.levels == tuple(torch.tensor([0.2, 0.6, 0.4, 0.7, 3 / 16, 8 / 16]).tolist())
    for action, axis, level in zip(probes.actions.tolist(), probes.axes, probes.levels, strict=True):
        ratios = space.ratios[action]
        assert ratios[axis] == level and (ratios == 1).sum() == 2


@pytest.mark.parametrize("settings", [{}, {"criterion": "relevancy"}, {"selection": "group"}, SKETCH])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_a_probe_is_a_step_on_a_dense_history(family, settings):
    model, blocks, probes, actions = problem(family, **settings)
    measured = measure(model, blocks, CONTEXT, probes, actions)
    assert measured.divergence.shape == (2, STEPS, len(probes.actions))
    prefix = prefill(model, blocks, CONTEXT, dense=True)
    dense = torch.full((STEPS, 2), model.action_space.dense_id)
    for step in range(STEPS):
        for number, action in enumerate(probes.actions.tolist()):
            schedule = dense.clone()
            schedule[step] = action
            alone = roll_out(model, prefix, blocks, torch.ones(2, 3), ScheduleController(schedule))
            check_close(measured.losses[:, step, 1 + number], -alone.label_logprobs[:, step])
            check_close(measured.divergence[:, step, number], alone.divergence[:, step])
    alone = roll_out(model, prefix, blocks, torch.ones(2, 3), ScheduleController(dense))
    check_close(measured.losses[..., 0], -alone.label_logprobs)
    check_close(measured.hidden_states, alone.hidden_states)
    assert measured.divergence.mean() > 1e-3


@pytest.mark.parametrize("settings", [SKETCH, {"criterion": "relevancy"}, {"criterion": "recency"}, {}])
def test_steps_that_run_together_give_what_each_gives_alone(settings, monkeypatch):
    model = control(tiny_base("llama", torch.float64), page_size=4, **settings)
    generator, context, steps = torch.Generator().manual_seed(5), 70, 12
    blocks = torch.randint(1, 99, (2, context + steps + 1), generator=generator)
    actions = torch.randint(len(model.action_space), (2, steps), generator=generator)
    real, groups = counterfactuals.steps_run_together, []

    def noted(*given):
        groups.extend(real(*given))
        return groups

    monkeypatch.setattr(counterfactuals, "steps_run_together", noted)
    together = measure(model, blocks, context, Probes.of(model.action_space), actions)
    assert [len(group) for group in groups] == [3] * 4
    monkeypatch.setattr(counterfactuals, "steps_run_together", lambda steps, *given: [[x] for x in range(steps)])
    alone = measure(model, blocks, context, Probes.of(model.action_space), actions)
    assert (alone.divergence > 1e-5).float().mean() > 0.9
    for name, values in vars(alone).items():
        torch.testing.assert_close(getattr(together, name), values, atol=2e-6, rtol=1e-5)


def test_next_states_are_those_after_a_random_action():
    model, blocks, probes, actions = problem()
    measured = measure(model, blocks, CONTEXT, probes, actions)
    assert torch.equal(measured.next_actions, actions)
    prefix = prefill(model, blocks, CONTEXT)
    for step in range(STEPS - 1):
        schedule = torch.full((STEPS, 2), model.action_space.dense_id)
        schedule[step] = actions[:, step]
        alone = roll_out(model, prefix, blocks, torch.ones(2, 3), ScheduleController(schedule))
        check_close(measured.next_states[:, step], alone.hidden_states[:, step + 1])


def test_steps_that_are_always_dense_are_refused():
    model, blocks, probes, actions = problem()
    with pytest.raises(ValueError, match="always dense"):
        measure(model, blocks, 2, probes, actions)


def test_measurements_can_be_put_together():
    model, blocks, probes, actions = problem()
    one = measure(model, blocks, CONTEXT, probes, actions)
    both = Counterfactuals.concatenate([one, one])
    assert torch.equal(both.losses[2:], one.losses) and both.tokens.shape == (4, STEPS)
