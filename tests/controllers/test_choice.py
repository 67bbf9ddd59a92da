# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What is taken or drawn where a controller or a processor says nothing that can be ranked."""

import pytest
import torch

from sol_hf import Controller
from sol_hf.controllers.choice import drawn_actions
from sol_hf.controllers.processors import ActionProcessor
from support.cases import HALF, prompts, sol_model


class Says(Controller):
    """The same score for every action, or another one for the last."""

    needs_budget = False

    def __init__(self, score: float, last: float | None = None):
        self.score, self.last = score, last

    def __call__(self, observation):
        scores = torch.full((observation.rows, len(observation.action_space)), self.score)
        scores[:, -1] = self.score if self.last is None else self.last
        return scores


class RuleOutAll(ActionProcessor):
    def __call__(self, action_ids, scores, observation):
        return torch.full_like(scores, float("-inf"))


def generate(model, controller, **options):
    arguments = dict(max_new_tokens=5, do_sample=False, return_dict_in_generate=True, controller=controller)
    return model.generate(prompts(length=12), **arguments, **options)


@pytest.mark.parametrize("draws", [False, True])
@pytest.mark.parametrize("controller", [Says(torch.nan), Says(0.0, last=torch.nan)])
def test_scores_that_are_no_numbers_are_refused(controller, draws):
    with pytest.raises(ValueError, match=r"Says returned scores that are not a number \(NaN\)"):
        generate(sol_model(), controller, do_sample_actions=draws, **HALF)


@pytest.mark.parametrize("mode", ["hard", "soft"])
@pytest.mark.parametrize("score", [torch.inf, -torch.inf, 1e38])
def test_actions_can_be_drawn_from_infinite_scores(score, mode):
    model = sol_model()
    output = generate(model, Says(score), do_sample_actions=True, action_temperature=0.1, budget_mode=mode, **HALF)
    assert output.actions.unique().numel() > 1  # any of the allowed ones
    assert mode == "soft" or (output.realised[:, 0] <= 0.5 + 0.5 / 5 + 1e-4).all()


def test_an_infinite_score_is_certain():
    output = generate(sol_model(), Says(0.0, last=torch.inf), do_sample_actions=True, action_temperature=9.0)
    assert (output.actions == 26).all()


def test_actions_can_be_drawn_where_a_processor_rules_out_all_of_them():
    output = generate(sol_model(), Says(0.0), action_processors=[RuleOutAll()], do_sample_actions=True)
    assert output.actions.unique().numel() > 1


def test_finite_scores_are_drawn_by_their_softmax():
    scores = torch.tensor([[0.0, 1.0, -torch.inf, 3.0]]).expand(4000, -1)
    shares = drawn_actions(scores, temperature=2.0).bincount(minlength=4) / 4000
    torch.testing.assert_close(shares, (scores[0] / 2).softmax(0), atol=0.04, rtol=0)
