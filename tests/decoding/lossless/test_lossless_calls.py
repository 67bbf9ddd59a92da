# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Calls with `lossless` that cannot be carried out are refused before any compute, and say what to do instead."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from sol_hf import Budget, FixedController, SOLForCausalLM, UnsupportedAxisError
from sol_hf.decoding.lossless import look_ahead
from sol_hf.decoding.step import dense_part
from support.bases import tiny_base
from support.cases import HALF, prompts, sol_model


CALL = dict(max_new_tokens=6, do_sample=False, pad_token_id=0)


@pytest.fixture
def model(monkeypatch) -> SOLForCausalLM:
    """A model whose base must not compute anything."""
    model = sol_model()

    def forward(input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, **kwargs):
        raise AssertionError("there was compute")

    monkeypatch.setattr(model.base, "forward", forward)
    return model


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num_beams=2), "`lossless` cannot be used with beams"),
        (dict(num_beams=2, do_sample=True), "`lossless` cannot be used with beams"),
        (dict(lossless=0.5), "`lossless` must be True, False, or the tokens of a draft, got 0.5"),
        (dict(lossless="yes"), "`lossless` must be True, False, or the tokens of a draft"),
        (dict(lossless=-1), "A draft has 1 to 64 tokens"),
        (dict(lossless=0), "A draft has 1 to 64 tokens"),
        (dict(lossless=65), "A draft has 1 to 64 tokens"),
        (dict(budget=Budget(token_keep=1.0)), "this one is dense"),
        (dict(exact=True, bits=8), "leave out `exact`"),
        (dict(measure_agreement=True), "leave out `measure_agreement`"),
        (dict(assistant_model="another"), "cannot run under a budget"),
        (dict(prompt_lookup_num_tokens=3), "cannot run under a budget"),
        (dict(past_key_values=DynamicCache()), "needs a SOLCache"),
        (dict(use_cache=False), "needs the cache"),
        (dict(losless=True), "did you mean `lossless`"),
        (dict(cuda_graphs=True), "`cuda_graphs` needs a GPU"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        model.generate(prompts(1), **(CALL | {"lossless": True} | options))


@pytest.mark.parametrize("option", ["lossless", "measure_agreement"])
def test_score_has_no_such_option(model, option):
    with pytest.raises(ValueError, match=f"nothing for `{option}`: leave it out"):
        model.score(prompts(), context_length=5, **{option: True})


def test_false_is_as_if_it_was_not_passed():
    model = sol_model()
    assert torch.equal(model.generate(prompts(), lossless=False, **CALL), model.base.generate(prompts(), **CALL))
    texts = [
        model.generate(prompts(), controller=FixedController(), **HALF, **CALL, **x) for x in ({}, {"lossless": False})
    ]
    assert torch.equal(*texts)


def test_a_base_that_cannot_be_rolled_back_is_refused():
    config = AutoConfig.for_model(
        "qwen3_next",
        vocab_size=99,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        linear_num_value_heads=4,
        linear_num_key_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        layer_types=["linear_attention", "full_attention"],
        num_experts=0,
        mlp_only_layers=[0, 1],
    )
    base = AutoModelForCausalLM.from_config(config).eval()
    model = SOLForCausalLM.from_base(base)
    with pytest.raises(UnsupportedAxisError, match="cannot take tokens back and give them again. Leave it out."):
        model.generate(prompts(), lossless=True, **CALL)


def test_a_limit_on_the_planes_that_is_too_small_says_so():
    with pytest.raises(ValueError, match="max_plane_bytes"):
        SOLForCausalLM.from_base(tiny_base("llama")).generate(prompts(), lossless=True, max_plane_bytes=10, **CALL)


def test_a_stored_budget_is_what_drafts_spend():
    model = sol_model()
    for axis, target in HALF.items():
        setattr(model.generation_config, axis, target)
    output = model.generate(prompts(), lossless=3, return_dict_in_generate=True, **CALL)
    assert torch.equal(output.sequences, model.base.generate(prompts(), **CALL)) and output.checks > 0


def test_a_custom_loop_may_call_generate_or_the_model():
    model = sol_model()
    expected = model.base.generate(prompts(), **CALL)

    def again(model, input_ids, generation_config, attention_mask, **arguments):
        return model.generate(input_ids, generation_config=generation_config, attention_mask=attention_mask)

    def by_hand(model, input_ids, **arguments):
        new = input_ids
        for _ in range(CALL["max_new_tokens"]):
            logits = model(new, past_key_values=arguments["past_key_values"]).logits[:, -1]
            new = logits.argmax(-1, keepdim=True)
            input_ids = torch.cat([input_ids, new], dim=1)
        return input_ids

    for loop in (again, by_hand):
        assert torch.equal(model.generate(prompts(), lossless=3, custom_generate=loop, **CALL), expected)


def test_one_token_after_those_of_a_cache_is_a_step(monkeypatch):
    """It need not go through the base's modules, as a longer prompt does; the text is that of one call."""
    model, text = sol_model(), prompts(1)
    forwards = []
    monkeypatch.setattr(look_ahead, "dense_part", lambda *args: forwards.append(args) or dense_part(*args))
    first = model.generate(text, lossless=3, return_dict_in_generate=True, **CALL)
    assert len(forwards) == 1
    again = model.generate(first.sequences, past_key_values=first.past_key_values, lossless=3, **CALL)
    assert len(forwards) == 1
    assert torch.equal(again, model.base.generate(text, **CALL | {"max_new_tokens": 12}))
