# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Programs and modules give the same over keys and values that are kept in bfloat16 for a base in float32."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sol_hf import FixedController
from support.bases import tiny_base
from support.cases import left_padded, prompts
from support.programs import CALL, WIDE, logits_of, model_of


HALF = {"kv_dtype": "bfloat16"}
SKETCH = {"criterion": "sketch", "selection": "layer"}
JOINT = {"token_keep": 0.3, "mlp_keep": 0.4, "bits": 8}
WINDOWS = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
OVERRIDES = {"gemma3_text": WINDOWS, "mistral": {"sliding_window": 16}}


SLOW = [pytest.param(family, marks=pytest.mark.slow) for family in ("qwen3", "mistral")]


def base_of(family, **overrides):
    return tiny_base(family, **{**OVERRIDES.get(family, {}), **overrides})


def assert_rounds_alike(model, **options) -> None:
    """Modules and programs agree on two texts of two rows.

    A number that lies between two of bfloat16 may be rounded to either, by chance in one of the texts, which then
    differs by a little more.
    """
    differences = []
    for seed in (2, 3):
        ids = prompts(2, 80, seed=seed)
        texts = [logits_of(model, backend, input_ids=ids, **options) for backend in ("reference", "fast")]
        differences.append(float((texts[0] - texts[1]).abs().amax()))
    assert min(differences) < 1e-4 and max(differences) < 1e-2, differences


@pytest.mark.parametrize("rule", [{}, SKETCH], ids=["quest", "sketch"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text", *SLOW])
@pytest.mark.parametrize("is_joint", [False, True], ids=["dense", "joint"])
def test_on(family, rule, is_joint, ran):
    budget = {} if not is_joint else JOINT if family != "mistral" else {"mlp_keep": 0.4}
    assert_rounds_alike(model_of(base_of(family), **rule), kv_refresh=False, **HALF, **budget)
    assert len(ran) >= 2 * (CALL["max_new_tokens"] - 1)


@pytest.mark.parametrize("rule", [{}, SKETCH], ids=["quest", "sketch"])
def test_kernels_without_a_program_give_the_same(rule, by_modules):
    model = model_of(base_of("llama"), **HALF, **rule)
    assert_rounds_alike(model, kv_refresh=False, token_keep=0.3)


def test_planes(ran):
    model = model_of(base_of("llama", **WIDE), **HALF, **SKETCH)
    assert_rounds_alike(model, bits_backend="nested", bits=8, token_keep=0.3, kv_refresh=False)
    assert ran


@settings(max_examples=4, deadline=None)
@given(
    family=st.sampled_from(["qwen3", "gemma3_text"]),
    lengths=st.lists(st.integers(2, 60), min_size=1, max_size=3),
    rule=st.sampled_from([{}, SKETCH]),
)
def test_drawn_rows(family, lengths, rule):
    """A number that lies between two of bfloat16 may be rounded to either, so some logits differ a little more."""
    rows = [prompts(1, length, seed=length)[0] for length in lengths]
    model = model_of(base_of(family), **HALF, **rule)
    found = [logits_of(model, backend, token_keep=0.9, **left_padded(rows)) for backend in ("reference", "fast")]
    torch.testing.assert_close(*found, atol=2e-2, rtol=2e-2)


def turns(model, backend, crop) -> torch.Tensor:
    """Logits of a second turn over the cache of the first one, which has refreshes in it."""
    call = {**CALL, "max_new_tokens": 17, "controller": FixedController(), "backend": backend, **JOINT}
    first = model.generate(prompts(2, 40), **call)
    cache, text = first.past_key_values, first.sequences
    assert all(layer.stored_dtype == torch.bfloat16 for layer in cache.layers)
    if crop:
        cache.crop(-crop)
        text = text[:, : cache.get_seq_length()]
    text = torch.cat([text, prompts(2, 7, seed=5)], dim=1)
    second = model.generate(text, attention_mask=torch.ones_like(text), past_key_values=cache, **call)
    return torch.stack(second.logits, dim=1)


@pytest.mark.parametrize("crop", [0, 3])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_several_turns_with_refreshes(family, crop, ran):
    model = model_of(base_of(family), **HALF)
    found = [turns(model, backend, crop) for backend in ("reference", "fast")]
    torch.testing.assert_close(*found, atol=2e-2, rtol=2e-2)
    assert ran


def test_beams(ran):
    model = model_of(base_of("llama"), **HALF)
    call = dict(max_new_tokens=8, do_sample=False, num_beams=3, token_keep=0.3, controller=FixedController())
    texts = [model.generate(prompts(2, 30), backend=backend, **call) for backend in ("reference", "fast")]
    assert torch.equal(*texts) and ran


def test_programs_of_two_dtypes_over_one_base(ran):
    """A program that was made for one cache is not used for another."""
    model = model_of(base_of("llama"))
    for kv_dtype in ("bfloat16", "float32", "bfloat16"):
        assert_rounds_alike(model, kv_dtype=kv_dtype, token_keep=0.3, kv_refresh=False)
    assert len(ran) >= 6 * (CALL["max_new_tokens"] - 1)
