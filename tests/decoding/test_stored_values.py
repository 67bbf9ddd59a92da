# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Options of transformers that a budget does not allow: refused if asked for, ignored if only stored."""

import pytest
import torch
from transformers import GenerationConfig

from sol_hf import FixedController, SOLForCausalLM
from support.bases import tiny_base
from support.cases import HALF, control, prompts


RUN = {"max_new_tokens": 6, "do_sample": False}
BUDGET = {**HALF, "controller": FixedController()}
IGNORED = {
    "cache_implementation": ["hybrid", "static", "offloaded", "quantized", "sliding_window"],
    "use_cache": [False],
    "prompt_lookup_num_tokens": [3],
    "output_attentions": [True],
}
CASES = [(name, value) for name, values in IGNORED.items() for value in values]
MESSAGES = {
    "cache_implementation": "A budget needs its own cache",
    "use_cache": "remove `use_cache=False`",
    "prompt_lookup_num_tokens": "`assisted_generation` cannot run under a budget",
    "output_attentions": "`output_attentions` cannot be used under a budget",
}


@pytest.fixture
def model() -> SOLForCausalLM:
    return control(tiny_base("llama", torch.float64))


@pytest.mark.parametrize(("name", "value"), CASES)
def test_a_stored_value_is_ignored_under_a_budget(model, name, value):
    expected = model.generate(prompts(1), **RUN, **BUDGET, return_dict_in_generate=True)
    setattr(model.generation_config, name, value)
    output = model.generate(prompts(1), **RUN, **BUDGET, return_dict_in_generate=True)
    assert torch.equal(output.sequences, expected.sequences) and torch.equal(output.actions, expected.actions)
    assert output.actions.ne(model.action_space.dense_id).any() and output.attentions is None
    assert getattr(model.generation_config, name) == value


@pytest.mark.parametrize(("name", "value"), CASES)
def test_a_changed_copy_of_the_stored_config_asks_for_nothing(model, name, value):
    expected = model.generate(prompts(1), **RUN, **BUDGET)
    setattr(model.generation_config, name, value)
    values = {**model.generation_config.to_dict(), "max_new_tokens": 6, "do_sample": False, **HALF}
    copied = GenerationConfig.from_dict(values)
    output = model.generate(prompts(1), generation_config=copied, controller=FixedController())
    assert torch.equal(output, expected)


@pytest.mark.parametrize(("name", "value"), CASES)
def test_a_value_that_is_asked_for_is_refused_before_any_compute(model, name, value):
    def fail(*_):
        raise AssertionError("the base ran")

    model.base.register_forward_pre_hook(fail)
    with pytest.raises(ValueError, match=MESSAGES[name]):
        model.generate(prompts(1), **RUN, **BUDGET, **{name: value})
    with pytest.raises(ValueError, match=MESSAGES[name]):
        model.generate(prompts(1), generation_config=GenerationConfig(**RUN, **{name: value}), **BUDGET)


@pytest.mark.parametrize(("name", "value"), [("use_cache", True), ("cache_implementation", "dynamic")])
def test_a_stored_value_can_be_overruled(model, name, value):
    expected = model.generate(prompts(1), **RUN, **BUDGET)
    setattr(model.generation_config, name, {"use_cache": False}.get(name, "static"))
    assert torch.equal(model.generate(prompts(1), **RUN, **BUDGET, **{name: value}), expected)


def test_an_old_base_config_without_the_cache():
    model = control(tiny_base("llama", torch.float64, use_cache=False))
    assert model.generation_config.use_cache is False or model.base.config.use_cache is False
    expected = control(tiny_base("llama", torch.float64)).generate(prompts(), **RUN, **BUDGET)
    assert torch.equal(model.generate(prompts(), **RUN, **BUDGET), expected)
    cache = model.new_cache()
    model(prompts(), past_key_values=cache)
    assert cache.get_seq_length() == 20


def test_guidance_runs_the_base_without_the_budget_and_is_refused(model):
    message = "`guidance_scale=1.5` runs the base a second time .*: pass `guidance_scale=1`"
    with pytest.raises(ValueError, match=message):
        model.generate(prompts(1), **RUN, **BUDGET, guidance_scale=1.5)
    expected = model.generate(prompts(1), **RUN, **BUDGET)
    model.generation_config.guidance_scale = 1.5
    with pytest.raises(ValueError, match=message):
        model.generate(prompts(1), **RUN, **BUDGET)
    assert torch.equal(model.generate(prompts(1), **RUN, **BUDGET, guidance_scale=1), expected)


def test_without_a_budget_stored_values_are_what_they_are_in_transformers(model):
    model.generation_config.cache_implementation = model.base.generation_config.cache_implementation = "static"
    output = model.generate(prompts(1), **RUN, return_dict_in_generate=True)
    assert type(output.past_key_values).__name__ == "StaticCache"
    assert torch.equal(output.sequences, model.base.generate(prompts(1), **RUN))
