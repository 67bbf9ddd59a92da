# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Measured costs of single steps: what a probe gives is what a row of its own would give."""

import torch

from bases import tiny_base
from cases import SETTINGS, control
from sol_hf import FixedController, ScheduleController
from sol_hf.actions import AXES
from sol_hf.counterfactuals import Counterfactuals, Probes, measure
from sol_hf.rollouts import prefill, roll_out


CONTEXT, STEPS = 20, SETTINGS["episode_length"]


def problem():
    model = control(tiny_base("llama", torch.float64))
    generator = torch.Generator().manual_seed(5)
    blocks = torch.randint(1, 99, (2, CONTEXT + STEPS + 1), generator=generator)
    return model, blocks, Probes.of(model.action_space), torch.full((2, 3), 0.6)


def test_probes_are_dense_and_then_one_axis_at_a_time():
    space = control(tiny_base("llama")).action_space
    probes = Probes.of(space)
    assert probes.actions[0] == space.dense_id
    assert probes.axes == (0, 0, 1, 1, 2, 2)
    assert probes.levels == tuple(torch.tensor([0.2, 0.6, 0.4, 0.7, 3 / 16, 8 / 16]).tolist())
    for action, axis, level in zip(probes.actions[1:].tolist(), probes.axes, probes.levels, strict=True):
        ratios = space.ratios[action]
        assert ratios[axis] == level and (ratios == 1).sum() == 2


def test_a_probe_is_a_step_on_a_history_of_the_fixed_schedule():
    model, blocks, probes, targets = problem()
    measured = measure(model, blocks, CONTEXT, probes, targets)
    assert measured.divergence.shape == (2, STEPS, len(probes.actions))
    prefix = prefill(model, blocks, CONTEXT, dense=True)
    history = roll_out(model, prefill(model, blocks, CONTEXT), blocks, targets, FixedController(carry=AXES))
    step = 3
    for number, action in enumerate(probes.actions.tolist()):
        schedule = history.actions.T.clone()
        schedule[step] = action
        alone = roll_out(model, prefix, blocks, targets, ScheduleController(schedule))
        torch.testing.assert_close(measured.losses[:, step, number], -alone.label_logprobs[:, step])
        torch.testing.assert_close(measured.divergence[:, step, number], alone.divergence[:, step])
    torch.testing.assert_close(measured.hidden_states, history.hidden_states, atol=1e-5, rtol=1e-5)


def test_the_dense_probe_costs_nothing_on_a_dense_history():
    model, blocks, probes, _ = problem()
    measured = measure(model, blocks, CONTEXT, probes, torch.ones(2, 3))
    assert measured.divergence[..., 0].abs().max() < 1e-6
    assert measured.divergence[..., 1:].mean() > 1e-3


def test_measurements_can_be_put_together():
    model, blocks, probes, targets = problem()
    one = measure(model, blocks, CONTEXT, probes, targets)
    both = Counterfactuals.concatenate([one, one])
    assert torch.equal(both.losses[2:], one.losses) and both.tokens.shape == (4, STEPS)
