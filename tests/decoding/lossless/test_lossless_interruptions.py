# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A lossless text that is interrupted in a draft, a check or a callback leaves a cache from which it goes on."""

import copy

import pytest
import torch
from transformers import LogitsProcessor, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from sol_hf import FixedController, SOLCache, SOLForCausalLM
from sol_hf.decoding.session import DecodingSession
from support.cases import left_padded, prompts, sol_model


STEPS, PROMPT = 12, 20
CALL = dict(do_sample=False, max_new_tokens=STEPS, pad_token_id=0)
DRAFTS = dict(lossless=4, controller=FixedController(), token_keep=0.2, mlp_keep=0.7, bits=8)


class Interrupted(BaseException):
    """Like KeyboardInterrupt, no `Exception`."""


class Alarm:
    """Raises at the n-th call of a module of the base, before it or after it."""

    def __init__(self, model: SOLForCausalLM, at: int | None = None):
        self.calls, self.at = 0, at
        modules = list(model.base.modules())
        self.handles = [x for m in modules for x in (m.register_forward_pre_hook(self), m.register_forward_hook(self))]

    def __call__(self, *_):
        self.calls += 1
        if self.calls == self.at:
            raise Interrupted

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()


def batch() -> dict[str, torch.Tensor]:
    return left_padded([prompts(1, length, seed=length)[0] for length in (PROMPT, 13)])


def check_rest(model: SOLForCausalLM, cache: SOLCache, expected: torch.Tensor) -> None:
    """Check that a text goes on from a cache to the one that is expected."""
    assert DecodingSession.current() is None
    known = max(cache.get_seq_length() + 1, PROMPT)
    mask = torch.cat([batch()["attention_mask"], torch.ones(2, known - PROMPT, dtype=torch.long)], dim=1)
    call = CALL | dict(max_new_tokens=PROMPT + STEPS - known)
    if call["max_new_tokens"]:
        rest = model.generate(expected[:, :known], attention_mask=mask, past_key_values=cache, **call, **DRAFTS)
        assert torch.equal(rest, expected)


@pytest.mark.parametrize("family", [pytest.param("llama", marks=pytest.mark.slow), "gemma3_text"])
def test_anywhere_in_a_forward(family):
    model = sol_model(family)
    expected = model.base.generate(**batch(), **CALL)
    with Alarm(model) as alarm:
        model.generate(**batch(), **CALL, **DRAFTS)
    places = torch.randint(2, alarm.calls, (9,), generator=torch.Generator().manual_seed(len(family)))
    for at in [1, alarm.calls, *places.tolist()]:
        cache = model.new_cache()
        with Alarm(model, at), pytest.raises(Interrupted):
            model.generate(**batch(), past_key_values=cache, **CALL, **DRAFTS)
        check_rest(model, cache, expected)


class InStreamer(BaseStreamer):
    def __init__(self, after: int):
        self.left = after

    def put(self, value):
        self.left -= 1
        if self.left < 0:
            raise Interrupted

    def end(self):
        pass


class InProcessor(LogitsProcessor):
    def __init__(self, after: int):
        self.left = after

    def __call__(self, input_ids, scores):
        self.left -= 1
        if self.left < 0:
            raise Interrupted
        return scores


class InCriterion(StoppingCriteria):
    def __init__(self, after: int):
        self.left = after

    def __call__(self, input_ids, scores, **kwargs):
        self.left -= 1
        if self.left < 0:
            raise Interrupted
        return torch.zeros(len(input_ids), dtype=torch.bool)


CALLBACKS = {
    "logits_processor": lambda after: [InProcessor(after)],
    "stopping_criteria": lambda after: [InCriterion(after)],
}


@pytest.mark.parametrize("after", [0, 3, 7])
@pytest.mark.parametrize("name", CALLBACKS)
def test_in_a_callback(name, after):
    model, cache = sol_model(), None
    expected, cache = model.base.generate(**batch(), **CALL), model.new_cache()
    with pytest.raises(Interrupted):
        model.generate(**batch(), past_key_values=cache, **CALL, **DRAFTS, **{name: CALLBACKS[name](after)})
    assert cache.get_seq_length() == PROMPT + after
    check_rest(model, cache, expected)


def test_in_a_streamer():
    model, cache, ids = sol_model(), None, prompts(1)
    expected, cache = model.base.generate(ids, **CALL), model.new_cache()
    with pytest.raises(Interrupted):
        model.generate(ids, past_key_values=cache, streamer=InStreamer(5), **CALL, **DRAFTS)
    known = cache.get_seq_length() + 1
    rest = model.generate(
        expected[:, :known], past_key_values=cache, **DRAFTS, **(CALL | dict(max_new_tokens=PROMPT + STEPS - known))
    )
    assert torch.equal(rest, expected)


@pytest.mark.parametrize("family", [pytest.param("llama", marks=pytest.mark.slow), "gemma3_text"])
def test_a_copy_of_the_cache_at_any_token_goes_on(family):
    """A callback that copies the cache never gets keys of tokens that the text does not have."""
    model, copies = sol_model(family), []
    expected, cache = model.base.generate(**batch(), **CALL), model.new_cache()

    class Copy(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            copies.append(copy.deepcopy(cache))
            return torch.zeros(len(input_ids), dtype=torch.bool)

    model.generate(**batch(), past_key_values=cache, stopping_criteria=[Copy()], **CALL, **DRAFTS)
    assert [each.get_seq_length() for each in copies] == list(range(PROMPT, PROMPT + STEPS))
    for each in copies[::3]:
        check_rest(model, each, expected)
