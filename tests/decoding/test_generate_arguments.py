# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Arguments of generate that do not fit each other or the cache: the right result, or a message that says why."""

import pytest
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteriaList
from transformers.generation import MaxLengthCriteria

from sol_hf import FixedController, SOLForCausalLM
from support.cases import HALF, prompts, sol_model


RUN = {"max_new_tokens": 6, "do_sample": False}
BUDGET = {**HALF, "controller": FixedController()}
DICT = {"return_dict_in_generate": True}


@pytest.fixture(scope="module")
def model() -> SOLForCausalLM:
    return sol_model()


@pytest.fixture
def assert_refused(model):
    """Asserts that a call raises before the base runs."""

    def check(message, *args, error=ValueError, **kwargs):
        def fail(*_):
            raise AssertionError("the base ran")

        handle = model.base.register_forward_pre_hook(fail)
        try:
            with pytest.raises(error, match=message):
                model.generate(*args, **{**RUN, **BUDGET, **kwargs})
        finally:
            handle.remove()

    return check


class Ban(LogitsProcessor):
    def __init__(self, token):
        self.token = token

    def __call__(self, input_ids, scores):
        return scores.index_fill(1, torch.tensor([self.token]), float("-inf"))


@pytest.mark.parametrize("options", [{}, BUDGET], ids=["dense", "budget"])
def test_positional_arguments_are_those_of_transformers(model, options):
    owner = model if options else model.base
    banned = int(owner.generate(prompts(1), **RUN, **options)[0, 20])
    named = owner.generate(prompts(1), logits_processor=LogitsProcessorList([Ban(banned)]), **RUN, **options)
    config = GenerationConfig(**RUN, pad_token_id=0)
    output = model.generate(prompts(1), config, LogitsProcessorList([Ban(banned)]), **options)
    assert torch.equal(output, named) and banned not in output[0, 20:].tolist()
    stopped = model.generate(prompts(1), config, None, StoppingCriteriaList([MaxLengthCriteria(23)]), **options)
    assert stopped.shape == (1, 23)


def test_too_many_positional_arguments_or_one_given_twice(model):
    with pytest.raises(TypeError, match="takes at most .* positional arguments, got 31"):
        model.generate(prompts(1), None, *[None] * 29)
    with pytest.raises(TypeError, match="got logits_processor twice"):
        model.generate(prompts(1), None, [], logits_processor=[], **BUDGET)


@pytest.mark.parametrize("length", [1, 10, 24, 25])
def test_a_prompt_that_is_shorter_than_the_cache(model, assert_refused, length):
    turn = model.generate(prompts(), **RUN, **BUDGET, **DICT)
    cache, text = turn.past_key_values, turn.sequences[:, :length]
    assert cache.get_seq_length() == 25
    message = f"The cache holds 25 tokens, the prompt has {length}: .* of {25 + length} columns"
    assert_refused(message, text, past_key_values=cache)
    assert_refused(message, text, past_key_values=cache, attention_mask=torch.ones_like(text))
    with pytest.raises(ValueError, match=message):  # a dense turn, too
        model.generate(text, **RUN, past_key_values=cache)
    more = torch.cat([turn.sequences, prompts(2, 3, seed=8)], dim=1)
    new = more[:, 25:]
    whole = model.generate(more, **RUN, **BUDGET, past_key_values=turn.past_key_values)
    again = model.generate(prompts(), **RUN, **BUDGET, **DICT).past_key_values
    mask = torch.ones(2, 25 + new.shape[1], dtype=torch.long)
    only_new = model.generate(new, **RUN, **BUDGET, past_key_values=again, attention_mask=mask)
    assert torch.equal(only_new[:, new.shape[1] :], whole[:, more.shape[1] :])


def test_another_text_than_that_in_the_cache(model, assert_refused):
    turn = model.generate(prompts(), **RUN, **BUDGET, **DICT)
    text = torch.cat([turn.sequences, prompts(2, 3, seed=8)], dim=1)
    text[1, 23] = (text[1, 23] + 1) % 99
    assert_refused(
        "differs from the text in the cache within its last 6 tokens, in row 1",
        text,
        past_key_values=turn.past_key_values,
    )


def test_the_rows_of_a_cache_after_beam_search_are_beams(model, assert_refused):
    beams = dict(num_beams=3, num_return_sequences=3)
    turn = model.generate(prompts(), **RUN, **BUDGET, **DICT, **beams)
    text = torch.cat([turn.sequences.flip(0), prompts(6, 3, seed=8)], dim=1)
    assert_refused("After beam search the rows of a cache are beams", text, past_key_values=turn.past_key_values)


def test_embeddings_of_another_length_than_the_ids(model, assert_refused):
    embeds = model.get_input_embeddings()(prompts())
    message = "`input_ids` has 10 tokens, `inputs_embeds` 20: both must cover the whole prompt"
    assert_refused(message, prompts()[:, :10], inputs_embeds=embeds)
    assert_refused(message, input_ids=prompts()[:, :10], inputs_embeds=embeds)


BAD_PROMPTS = {
    "no rows": (torch.zeros(0, 4, dtype=torch.long), r"no rows: its shape is \(0, 4\)"),
    "no tokens": (torch.zeros(2, 0, dtype=torch.long), "The prompt is empty"),
    "one dimension": (prompts()[0], r"of shape \(20,\)"),
    "floats": (prompts().float(), r"torch.float32 of shape \(2, 20\)"),
    "an id too large": (
        prompts().index_fill(1, torch.tensor([3]), 99),
        r"has the id 99, but the base's ids are 0..98",
    ),
    "a negative id": (prompts().index_fill(1, torch.tensor([3]), -100), r"has the id -100"),
}


@pytest.mark.parametrize("kind", BAD_PROMPTS)
def test_prompts_that_are_none(assert_refused, kind):
    prompt, message = BAD_PROMPTS[kind]
    assert_refused(message, prompt)


def test_ids_of_32_bits(model):
    expected = model.generate(prompts(), **RUN, **BUDGET)
    assert torch.equal(model.generate(prompts().int(), **RUN, **BUDGET), expected.int())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.int32])
def test_masks_of_any_kind_of_number(model, dtype):
    mask = torch.ones(2, 20, dtype=torch.long)
    mask[0, :5] = 0
    expected = model.generate(prompts(), **RUN, **BUDGET, attention_mask=mask)
    if dtype is not torch.bool:  # transformers extends masks by numbers
        assert torch.equal(model.generate(prompts(), **RUN, **BUDGET, attention_mask=mask.to(dtype)), expected)


def test_masks_of_other_shapes(assert_refused):
    assert_refused(
        "must have shape .rows, columns.*has shape .2, 1, 20, 20", prompts(), attention_mask=torch.ones(2, 1, 20, 20)
    )
    assert_refused("has shape .20,", prompts(), attention_mask=torch.ones(20))


@pytest.mark.parametrize("place", [5, 19])
def test_a_pad_id_within_a_prompt_without_a_mask(model, assert_refused, place):
    prompt = prompts()
    prompt[0, place] = 0
    assert_refused("Row 0 has the pad token .*no `attention_mask` was passed.*torch.ones_like", prompt)
    output = model.generate(prompt, **RUN, **BUDGET, attention_mask=torch.ones_like(prompt))
    alone = model.generate(prompt, **RUN, **BUDGET, pad_token_id=98)
    assert torch.equal(output, alone)


def test_pad_ids_on_the_left_without_a_mask_are_padding(model):
    prompt, mask = prompts(), torch.ones(2, 20, dtype=torch.long)
    prompt[0, :4], mask[0, :4] = 0, 0
    output = model.generate(prompt, **RUN, **BUDGET)
    assert torch.equal(output, model.generate(prompt, **RUN, **BUDGET, attention_mask=mask))


@pytest.mark.parametrize("chunk", [1, 3, 7, 19, 20, 50])
def test_a_prompt_in_chunks(model, chunk):
    whole = model.generate(prompts(), **RUN, **BUDGET, **DICT)
    parts = model.generate(prompts(), **RUN, **BUDGET, **DICT, prefill_chunk_size=chunk)
    assert torch.equal(parts.sequences, whole.sequences) and torch.equal(parts.actions, whole.actions)
