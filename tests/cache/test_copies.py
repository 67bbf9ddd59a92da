# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Copies of a used cache hold keys and state only, and a cache can be used in and outside of inference mode."""

import copy
import io
import pickle

import pytest
import torch

from sol_hf import SOLConfig, SOLForCausalLM
from support.bases import tiny_base
from support.cases import HALF, control, prompts, sol_model


RUN = {"max_new_tokens": 9, "do_sample": False, "return_dict_in_generate": True}
COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda cache: pickle.loads(pickle.dumps(cache)),
    "torch.save": lambda cache: torch.load(_saved(cache), weights_only=False),
}


def _saved(cache) -> io.BytesIO:
    buffer = io.BytesIO()
    torch.save(cache, buffer)
    buffer.seek(0)
    return buffer


def key_bytes(cache) -> int:
    return sum(x.nbytes for layer in cache.layers for x in (layer.keys, layer.values))


@pytest.mark.parametrize("kind", COPIES)
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "mistral"])
def test_a_copy_goes_on_like_the_original(family, kind):
    model = sol_model(family)
    turn = model.generate(prompts(), **RUN, **HALF)
    cache = turn.past_key_values
    copied = COPIES[kind](cache)
    cache.crop(-2)
    copied.crop(-2)
    text = torch.cat([turn.sequences[:, :26], prompts(2, 3, seed=8)], dim=1)
    options = {**RUN, **HALF, "attention_mask": torch.ones_like(text)}
    outputs = [model.generate(text, **options, past_key_values=x) for x in (cache, copied)]
    assert torch.equal(outputs[0].sequences, outputs[1].sequences)
    assert torch.equal(outputs[0].actions, outputs[1].actions)
    for ours, theirs in zip(cache.layers, copied.layers, strict=True):
        assert torch.equal(ours.keys, theirs.keys) and ours.keys.data_ptr() != theirs.keys.data_ptr()


def test_size_with_the_published_action_space_and_a_long_prompt():
    config = SOLConfig(policy_hidden_size=64, policy_num_heads=2)
    model = SOLForCausalLM.from_base(tiny_base("llama", max_position_embeddings=1024), config)
    cache = model.generate(prompts(length=600), **RUN, token_keep=0.5).past_key_values
    size, keys = len(pickle.dumps(cache)), key_bytes(cache)
    assert size < 1.2 * keys + 60_000, (size, keys)


def test_size_does_not_grow_with_the_steps_before():
    model = sol_model()
    cache = model.generate(prompts(), **{**RUN, "max_new_tokens": 60}, **HALF).past_key_values
    assert len(pickle.dumps(cache)) < key_bytes(cache) + 60_000


@pytest.mark.parametrize(
    "family, fields", [("llama", {}), ("gemma3_text", {}), ("llama", {"criterion": "sketch", "selection": "layer"})]
)
@pytest.mark.parametrize("back", [False, True])
def test_a_cache_of_inference_mode_is_continued_outside(family, fields, back):
    """And the other way round."""
    model = control(tiny_base(family, torch.float64), **fields)
    expected = model.generate(prompts(), **RUN, **HALF)
    text = torch.cat([expected.sequences, prompts(2, 3, seed=8)], dim=1)
    options = {**RUN, **HALF, "attention_mask": torch.ones_like(text)}
    with torch.inference_mode(not back):
        turn = model.generate(prompts(), **RUN, **HALF)
    assert torch.equal(turn.sequences, expected.sequences)
    with torch.inference_mode(back):
        output = model.generate(text, **options, past_key_values=turn.past_key_values)
    again = model.generate(text, **options, past_key_values=expected.past_key_values)
    assert torch.equal(output.sequences, again.sequences) and torch.equal(output.actions, again.actions)


def test_rows_that_do_not_fit_are_refused_by_the_cache():
    """A base that gets the cache with one row in place of two would else write it into both."""
    model = sol_model()
    cache = model.generate(prompts(), **RUN, **HALF).past_key_values
    with pytest.raises(ValueError, match="The cache holds 2 rows, but got 1"):
        model.base(prompts(1), past_key_values=cache)
