# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The running call is that of its own cache only, also where one call begins within another."""

import torch

from sol_hf import Controller, FixedController
from sol_hf.decoding.session import DecodingSession
from support.cases import HALF, prompts, sol_model


GREEDY = {"max_new_tokens": 5, "do_sample": False}


class Within(Controller):
    """The fixed schedule; before its third step it does something else first."""

    def __init__(self, other):
        self.other, self.found, self.inner = other, None, FixedController()

    def __call__(self, observation):
        if observation.total_step == 2:
            self.found = self.other()
        return self.inner(observation)


def test_a_dense_call_within_a_call_may_use_any_mode():
    model = sol_model()
    alone = model.generate(prompts(), **GREEDY, **HALF, controller=FixedController())
    looked_up = model.generate(prompts(1), **GREEDY, prompt_lookup_num_tokens=2)
    within = Within(lambda: model.generate(prompts(1), **GREEDY, prompt_lookup_num_tokens=2))
    assert torch.equal(model.generate(prompts(), **GREEDY, **HALF, controller=within), alone)
    assert torch.equal(within.found, looked_up)


def test_a_call_under_another_budget_within_a_call():
    model, budget = sol_model(), {"token_keep": 0.2, "bits": 4}
    outer = model.generate(prompts(), **GREEDY, **HALF, controller=FixedController())
    inner = model.generate(prompts(1), **GREEDY, **budget, controller=FixedController())
    within = Within(lambda: model.generate(prompts(1), **GREEDY, **budget, controller=FixedController()))
    assert torch.equal(model.generate(prompts(), **GREEDY, **HALF, controller=within), outer)
    assert torch.equal(within.found, inner) and DecodingSession.current() is None
