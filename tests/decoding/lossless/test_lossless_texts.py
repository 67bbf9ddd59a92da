# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""`generate(lossless=True)` gives the text of the base, whatever is drafted and however it is decoded."""

import pytest
import torch
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList

from sol_hf import FixedController, ScheduleController, SOLForCausalLM
from support.bases import FAMILIES, tiny_base
from support.cases import CONTROLLERS, HALF, constant_schedule, left_padded, mixed_schedule, prompts, sol_model


CALL = dict(max_new_tokens=18, do_sample=False, pad_token_id=0)
ENDS = [3, 5, 8, 11]
"""So many ids end a text that rows end at different places."""
CHEAP = dict(token_keep=0.2, mlp_keep=0.4, bits=3)
"""A budget under which drafts are often wrong."""


def plain(family: str = "llama", **overrides) -> SOLForCausalLM:
    return SOLForCausalLM.from_base(tiny_base(family, **overrides))


def padded() -> dict[str, torch.Tensor]:
    return left_padded([prompts(1, length, seed=length)[0] for length in (20, 13, 9)])


def assert_text_of_base(
    model: SOLForCausalLM, batch: dict, lossless: bool | int = 4, ours: dict | None = None, **options
) -> None:
    """Check that the text, and what is left of the random numbers, are those of the base; `ours`: options of ours."""
    texts, states = [], []
    for generate, further in ((model.base.generate, {}), (model.generate, {"lossless": lossless} | (ours or {}))):
        torch.manual_seed(5)
        texts.append(generate(**batch, **(CALL | options), **further))
        states.append(torch.get_rng_state())
    assert torch.equal(*texts) and torch.equal(*states)


@pytest.mark.parametrize("length", [pytest.param(True, marks=pytest.mark.slow), 5])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_text_and_logits_are_those_of_the_base(family, length):
    model, ids = plain(family), prompts()
    call = CALL | dict(return_dict_in_generate=True, output_logits=True)
    output, expected = model.generate(ids, lossless=length, **call), model.base.generate(ids, **call)
    assert torch.equal(output.sequences, expected.sequences)
    torch.testing.assert_close(torch.stack(output.logits), torch.stack(expected.logits), atol=1e-4, rtol=1e-4)
    assert output.past_key_values.get_seq_length() == ids.shape[1] + CALL["max_new_tokens"] - 1
    assert output.realised.tolist() == [[1, 1, 16]] * 2 and output.actions.shape == (2, CALL["max_new_tokens"])


@pytest.mark.parametrize(
    "options",
    [pytest.param({}, marks=pytest.mark.slow), dict(do_sample=True, temperature=0.8)],
    ids=["greedy", "sampled"],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_left_padded_rows_end_where_they_end(family, options):
    assert_text_of_base(plain(family), padded(), eos_token_id=ENDS, **options)


@pytest.mark.parametrize("backend", ["reference", "fast"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text", pytest.param("mistral", marks=pytest.mark.slow)])
def test_every_backend(family, backend):
    assert_text_of_base(plain(family), padded(), ours=dict(backend=backend))


@pytest.mark.parametrize(
    "options",
    [
        dict(repetition_penalty=1.4),
        dict(no_repeat_ngram_size=2, min_new_tokens=12, eos_token_id=ENDS),
        dict(bad_words_ids=[[n] for n in range(40, 70)]),
        dict(suppress_tokens=[47, 21], begin_suppress_tokens=[9]),
        dict(do_sample=True, top_k=5, top_p=0.9),
        dict(do_sample=True, num_return_sequences=2, min_p=0.05),
        dict(exponential_decay_length_penalty=(4, 1.2), eos_token_id=ENDS),
        dict(max_new_tokens=1),
        dict(max_new_tokens=2),
        dict(max_length=24, max_new_tokens=None),
        dict(prefill_chunk_size=7),
    ],
    ids=lambda options: "-".join(options),
)
def test_options_of_generate(options):
    assert_text_of_base(
        plain(), padded() if "prefill_chunk_size" not in options else {"input_ids": prompts()}, **options
    )


def test_drafts_are_as_good_as_without_processors_and_sampling():
    """Drafts that are dense are the model itself: then every token is taken, whatever chooses it."""
    model = sol_model()
    dense = ScheduleController(constant_schedule(model, "dense", 100))
    call = CALL | dict(return_dict_in_generate=True, controller=dense, lossless=4)
    for options in (
        dict(repetition_penalty=1.4),
        dict(do_sample=True),
        dict(do_sample=True, top_k=7, temperature=2.0),
    ):
        assert model.generate(**padded(), **(call | options)).agreement == 1


class Counting(LogitsProcessor):
    """A processor of the user that remembers its calls: one that is called for drafts as well would go wrong."""

    def __init__(self):
        self.calls = []

    def __call__(self, input_ids, scores):
        self.calls.append(input_ids.shape[1])
        scores[:, (7 * len(self.calls)) % 99] += 5
        return scores


def test_a_processor_of_the_user_is_called_once_a_token():
    model, calls, texts = plain(), [], []
    for generate, options in ((model.base.generate, {}), (model.generate, {"lossless": True})):
        processor = Counting()
        texts.append(generate(prompts(), logits_processor=LogitsProcessorList([processor]), **CALL, **options))
        calls.append(processor.calls)
    options = {"prefix_allowed_tokens_fn": lambda row, ids: [int(ids[-1]) % 97 + 1, 5, 9]}
    assert_text_of_base(plain(), {"input_ids": prompts()}, **options)


def test_allowed_tokens_of_a_function():
    assert_text_of_base(
        plain(), {"input_ids": prompts()}, prefix_allowed_tokens_fn=lambda row, ids: [int(ids[-1]) % 97 + 1, 5, 9]
    )


@pytest.mark.parametrize(
    "name", ["policy", "entropy", *(pytest.param(name, marks=pytest.mark.slow) for name in CONTROLLERS)]
)
def test_every_controller_drafts(name):
    model = sol_model()
    if name == "schedule":  # drafts that are dropped are steps as well
        controller = ScheduleController(mixed_schedule(model, steps=100, rows=1))
    else:
        controller = CONTROLLERS[name](model)
    assert_text_of_base(model, padded(), ours=CHEAP | dict(controller=controller))


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_bad_drafts_are_dropped(family):
    model = sol_model(family)
    call = CALL | dict(return_dict_in_generate=True)
    output = model.generate(**padded(), lossless=5, controller=FixedController(), **CHEAP, **call)
    assert torch.equal(output.sequences, model.base.generate(**padded(), **CALL))
    assert output.agreement < 0.7 and output.checks > 4


def test_what_is_reported_adds_up():
    model = plain()
    output = model.generate(prompts(1), lossless=3, return_dict_in_generate=True, **CALL)
    forwards = (CALL["max_new_tokens"] - 1) / output.tokens_per_forward
    assert 0 <= forwards - output.checks <= 1 and 0 < output.agreement <= 1  # nothing is drafted before the last
    assert model.generate(prompts(1), token_keep=1.0, return_dict_in_generate=True, **CALL).checks is None


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "mistral"])
def test_turns_with_and_without_a_budget_between(family):
    """The third turn follows one under a budget, whose text the base is given as well."""
    model, text = sol_model(family), prompts()
    cache, dense = model.new_cache(), DynamicCache(config=model.base.config)
    for turn, options in enumerate((dict(lossless=4), HALF | dict(controller=FixedController()), dict(lossless=True))):
        mask = torch.ones_like(text)
        ours = model.generate(text, attention_mask=mask, past_key_values=cache, **CALL, **options)
        if turn != 1:
            assert torch.equal(ours, model.base.generate(text, attention_mask=mask, past_key_values=dense, **CALL))
        else:
            dense = DynamicCache(config=model.base.config)
        text = torch.cat([ours, prompts(2, 5, seed=turn)], dim=1)


def test_a_turn_of_new_tokens_only():
    model, ids, more = plain(), prompts(), prompts(2, 3, seed=9)
    cache = model.new_cache()
    text = model.generate(ids, lossless=4, past_key_values=cache, **CALL)
    whole = torch.cat([text, more], dim=1)
    new = whole[:, cache.get_seq_length() :]
    ours = model.generate(new, lossless=4, past_key_values=cache, attention_mask=torch.ones_like(whole), **CALL)
    assert torch.equal(ours[:, new.shape[1] :], model.base.generate(whole, **CALL)[:, whole.shape[1] :])


def test_embeddings_as_the_prompt():
    model, ids = plain(), prompts()
    embeds = model.base.get_input_embeddings()(ids)
    assert_text_of_base(model, {"inputs_embeds": embeds})


def test_further_outputs_are_those_of_the_base():
    model = plain()
    call = CALL | dict(return_dict_in_generate=True, output_hidden_states=True)
    ours, expected = model.generate(prompts(), lossless=4, **call), model.base.generate(prompts(), **call)
    assert torch.equal(ours.sequences, expected.sequences) and ours.checks == 0
    last = [output.hidden_states[-1][-1] for output in (ours, expected)]
    torch.testing.assert_close(*last, atol=1e-5, rtol=1e-5)


def test_the_end_of_the_positions_of_the_base():
    model = plain("gpt2", max_position_embeddings=40)
    assert_text_of_base(model, {"input_ids": prompts(2, 24)}, lossless=8, max_new_tokens=16)


@pytest.mark.parametrize(
    "rope",
    [
        dict(rope_type="longrope", short_factor=[1.0] * 4, long_factor=[3.0] * 4, factor=8.0),
        dict(rope_type="dynamic", factor=2.0),
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_rotary_embeddings_that_change_within_the_text(rope):
    """The text crosses the length at which they change: a draft does not."""
    rope = rope | dict(rope_theta=10_000.0)
    if rope["rope_type"] == "longrope":
        overrides = dict(original_max_position_embeddings=30, max_position_embeddings=240)
        model = plain("phi3", rope_parameters=rope | dict(original_max_position_embeddings=30), **overrides)
    else:
        model = plain("llama", rope_parameters=rope, max_position_embeddings=30)
    assert_text_of_base(model, {"input_ids": prompts(2, 22)}, lossless=6)
