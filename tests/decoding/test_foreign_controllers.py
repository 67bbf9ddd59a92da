# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Controllers and processors of users get copies: what they edit in place changes no budget and no state."""

import pytest
import torch

from sol_hf import ActionProcessor, FixedController
from support.cases import HALF, assert_budget_kept, prompts, sol_model


RUN = {"max_new_tokens": 14, "do_sample": False, "return_dict_in_generate": True}


@pytest.fixture(scope="module")
def model():
    return sol_model()


def spoil(observation) -> None:
    """Edit everything that an observation holds, but the state that is a controller's own."""
    ledger, space = observation.ledger, observation.action_space
    tensors = [value for holder in (observation, ledger, space) for value in vars(holder).values()]
    for tensor in tensors:
        if isinstance(tensor, torch.Tensor):
            tensor.fill_(1)
    space.ratios_on(torch.device("cpu")).fill_(1)
    ledger.record(torch.zeros(observation.rows, 3), torch.ones(observation.rows, dtype=torch.bool))
    ledger.start_call()


class Spoiler(FixedController):
    """Scores of the fixed schedule for a dense budget, and an edited observation."""

    def __call__(self, observation):
        scores = observation.action_space.ratios.sum(dim=-1).repeat(observation.rows, 1)
        spoil(observation)
        return scores


class SpoilingProcessor(ActionProcessor):
    def __call__(self, action_ids, scores, observation):
        spoil(observation)
        action_ids.fill_(0)
        return scores


class Greedy(FixedController):
    def __call__(self, observation):
        return observation.action_space.ratios.sum(dim=-1).repeat(observation.rows, 1)


def test_a_controller_that_edits_its_observation(model):
    expected = model.generate(prompts(), **RUN, **HALF, controller=Greedy())
    output = model.generate(prompts(), **RUN, **HALF, controller=Spoiler())
    assert torch.equal(output.actions, expected.actions) and torch.equal(output.sequences, expected.sequences)
    assert torch.equal(output.realised, expected.realised)
    assert_budget_kept(model, output.actions, [20, 20], **HALF)


@pytest.mark.parametrize("options", [{}, {"controller": FixedController()}], ids=["policy", "fixed"])
def test_a_processor_that_edits_its_observation(model, options):
    output = model.generate(prompts(), **RUN, **HALF, **options, action_processors=[SpoilingProcessor()])
    again = model.generate(prompts(), **RUN, **HALF, **options)
    assert_budget_kept(model, output.actions, [20, 20], **HALF)
    assert torch.equal(output.actions, again.actions) and torch.equal(output.sequences, again.sequences)


def test_the_budget_of_a_call_is_not_that_of_the_cache(model):
    """What a controller keeps of an observation does not reach into a later step."""
    kept = []

    class Keeper(Greedy):
        def __call__(self, observation):
            for earlier in kept:
                spoil(earlier)
            kept.append(observation)
            return super().__call__(observation)

    output = model.generate(prompts(), **RUN, **HALF, controller=Keeper())
    assert torch.equal(output.actions, model.generate(prompts(), **RUN, **HALF, controller=Greedy()).actions)
