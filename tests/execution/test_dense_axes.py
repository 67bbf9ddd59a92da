# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Axes that are dense at every step, for any scores of a controller, are known before the first step."""

import pytest
import torch
from transformers import GenerationConfig

from sol_hf import ActionSpace, Controller
from sol_hf.decoding.options import resolve_options
from support.bases import tiny_base
from support.cases import AXES, DENSE, control, prompts


ALL = ActionSpace([0.5, 1.0], [0.5, 1.0], [8, 16])
TOKENS_ONLY = ActionSpace([0.5, 1.0], [1.0], [16])
NEVER_DENSE = ActionSpace([0.5, 1.0], [0.5, 1.0], [8])  # `bits` has no dense level


class Perverse(Controller):
    """Gives the cheapest action the highest score, and needs no budget."""

    needs_budget = False

    def __call__(self, observation):
        return -observation.action_space.ratios.sum(dim=1).expand(observation.rows, -1)


@pytest.mark.parametrize(
    "options, space, expected",
    [
        ({"token_keep": 0.5}, ALL, {"mlp_keep", "bits"}),
        ({"token_keep": 0.5, "mlp_keep": 1.0, "bits": 16}, ALL, {"mlp_keep", "bits"}),
        ({"token_keep": 0.5, "mlp_keep": 1.0, "bits": 16, "budget_mode": "soft"}, ALL, set()),
        ({"token_keep": 0.5, "budget_mode": "soft"}, ALL, {"mlp_keep", "bits"}),
        ({"token_keep": 0.5, "mlp_keep": [1.0, 0.9], "bits": [16, 16]}, ALL, {"bits"}),
        ({"controller": Perverse()}, ALL, set()),
        ({"controller": Perverse()}, TOKENS_ONLY, {"mlp_keep", "bits"}),
        ({"token_keep": 1.0, "mlp_keep": 1.0, "bits": 8}, NEVER_DENSE, {"token_keep", "mlp_keep"}),
    ],
)
def test_which_they_are(options, space, expected):
    assert resolve_options(options, None, GenerationConfig()).dense_axes(space) == expected


@pytest.mark.parametrize("options", [{"token_keep": 0.5}, {"mlp_keep": 0.5, "bits": 16, "token_keep": 0.9}], ids=str)
@pytest.mark.parametrize("draws", [False, True])
@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_steps_are_dense_on_them(options, draws, mode):
    model = control(tiny_base("llama"))
    given = {**options, "budget_mode": mode, "controller": Perverse(), "do_sample_actions": draws}
    output = model.generate(prompts(2), max_new_tokens=9, return_dict_in_generate=True, **given)
    axes = resolve_options(given, None, model.generation_config).dense_axes(model.action_space)
    values = model.action_space.values[output.actions]
    assert bool(axes) == (mode == "hard" or "bits" not in options)
    for axis in axes:
        column = AXES.index(axis)
        assert torch.equal(values[..., column], torch.full_like(values[..., column], DENSE[column]))
    assert (values < torch.tensor(DENSE)).any()
