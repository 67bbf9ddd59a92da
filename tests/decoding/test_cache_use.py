# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A cache belongs to one call at a time, and keeps what it was given whatever happens to the caller's tensors."""

import copy
import threading
from collections.abc import Callable

import pytest
import torch
from transformers import LogitsProcessor

from sol_hf import FixedController
from support.cases import HALF, prompts, sol_model


RUN = {"do_sample": False, "max_new_tokens": 6}
FIXED = {**HALF, "controller": FixedController()}


class AtStep(LogitsProcessor):
    """Calls a function once, in the middle of a generation."""

    def __init__(self, function: Callable[[], object], step: int = 3):
        self.function, self.step, self.calls = function, step, 0

    def __call__(self, input_ids, scores):
        self.calls += 1
        if self.calls == self.step:
            self.function()
        return scores


@pytest.fixture(scope="module")
def model():
    return sol_model()


class TestInUse:
    @pytest.mark.parametrize("budget", [FIXED, {}], ids=["budget", "dense"])
    def test_another_thread_is_refused_and_the_call_goes_on(self, model, budget):
        cache, ids, errors = model.new_cache(), prompts(), []
        expected = model.generate(ids, **RUN, **FIXED)

        def attempt():
            with pytest.raises(ValueError, match="in use by another call") as found:
                model.generate(torch.cat([ids, ids], dim=1), past_key_values=cache, **RUN, **budget)
            errors.append(found.value)

        def from_another_thread():
            thread = threading.Thread(target=attempt)
            thread.start()
            thread.join(timeout=60)

        processors = [AtStep(from_another_thread)]
        text = model.generate(ids, past_key_values=cache, logits_processor=processors, **RUN, **FIXED)
        assert len(errors) == 1 and torch.equal(text, expected)

    @pytest.mark.parametrize("inner", ["generate", "forward"])
    def test_code_within_the_call_is_refused(self, model, inner):
        cache, ids = model.new_cache(), prompts()
        longer = torch.cat([ids, ids], dim=1)

        def again():
            if inner == "generate":
                model.generate(longer, past_key_values=cache, **RUN, **FIXED)
            else:
                other = AtStep(lambda: model(ids[:, :1], past_key_values=cache))
                model.generate(ids, logits_processor=[other], **RUN)

        with pytest.raises(ValueError, match=r"in use by another call.*new_cache"):
            model.generate(ids, past_key_values=cache, logits_processor=[AtStep(again)], **RUN, **FIXED)

    def test_after_the_call_or_an_error_it_is_free(self, model):
        cache, ids = model.new_cache(), prompts()

        def fail():
            raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            model.generate(ids, past_key_values=cache, logits_processor=[AtStep(fail)], **RUN, **FIXED)
        cache.crop(ids.shape[1] - 1 - cache.get_seq_length())
        cache.end_episode(None)
        text = model.generate(torch.cat([ids, ids], dim=1), past_key_values=cache, **RUN, **FIXED)
        longer = torch.cat([text, ids], dim=1)
        assert model.generate(longer, past_key_values=cache, **RUN, **FIXED).shape[1] == longer.shape[1] + 6

    def test_a_copy_can_be_used_meanwhile(self, model):
        cache, ids, texts = model.new_cache(), prompts(), []
        first = model.generate(ids, past_key_values=cache, **RUN, **FIXED)
        longer = torch.cat([first, ids], dim=1)
        expected = model.generate(longer, past_key_values=copy.deepcopy(cache), **RUN, **FIXED)
        twin = copy.deepcopy(cache)
        at = AtStep(lambda: texts.append(model.generate(longer, past_key_values=twin, **RUN, **FIXED)))
        texts.append(model.generate(longer, past_key_values=cache, logits_processor=[at], **RUN, **FIXED))
        assert len(texts) == 2 and all(torch.equal(text, expected) for text in texts)


class TestTensorsOfTheCaller:
    """Buffers that a caller uses again do not reach back into the cache."""

    def test_positions(self, model):
        cache, ids = model.new_cache(), prompts()
        positions = torch.arange(ids.shape[1]).repeat(len(ids), 1)
        model.generate(ids, position_ids=positions, past_key_values=cache, **RUN, **FIXED)
        before = [step.along["position_ids"].value.clone() for step in cache.episode.steps]
        positions.zero_()
        assert all(
            torch.equal(step.along["position_ids"].value, value)
            for step, value in zip(cache.episode.steps, before, strict=True)
        )

    def test_a_token_of_a_loop_by_hand(self, model):
        cache, token = model.new_cache(), torch.tensor([[5], [6]])
        model(prompts(), past_key_values=cache)
        model(token, past_key_values=cache)
        token.fill_(9)
        assert cache.episode.token_before.tolist() == [[5], [6]]

    def test_hidden_states_of_an_output(self, model):
        cache, ids = model.new_cache(), prompts()
        options = {"output_hidden_states": True, "return_dict_in_generate": True, "past_key_values": cache}
        output = model.generate(ids, **options, **RUN, **FIXED)
        before = cache.episode.hidden_state.clone()
        for step in output.hidden_states:
            for layer in step:
                layer.zero_()
        assert torch.equal(cache.episode.hidden_state, before)
        assert all(step.previous_hidden.any() for step in cache.episode.steps)


@pytest.mark.parametrize("held", [0, 5])
def test_a_forward_without_tokens(model, held):
    cache = model.new_cache()
    if held:
        model(prompts()[:, :held], past_key_values=cache)
    for shape in ((2, 0), (0, 3), (4,)):
        with pytest.raises(ValueError, match="no tokens to process"):
            model(torch.ones(shape, dtype=torch.long), past_key_values=cache)
    assert cache.get_seq_length() == held
