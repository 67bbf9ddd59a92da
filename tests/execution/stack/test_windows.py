# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Steps of bases with sliding windows run as one program, and give what the modules of the base give."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sol_hf import FixedController
from support.bases import tiny_base
from support.cases import left_padded, prompts
from support.programs import CALL, WIDE, assert_same, logits_of, model_of


SLIDING, FULL = "sliding_attention", "full_attention"
WINDOW = 16
MIXED = {"sliding_window": WINDOW, "layer_types": [SLIDING, FULL]}
USED = {"use_sliding_window": True, "max_window_layers": 1, **MIXED}
SPARSE = {
    "gemma3_text": {},
    "qwen2": USED,
    "qwen3": USED,
    "smollm3": {**USED, "no_rope_layer_interval": 2},
    "olmo3": MIXED,
    "ministral": MIXED,
    "cohere2": MIXED,
    "exaone4": MIXED,
}
"""Bases in which some layers have full attention, which `token_keep` controls."""
DENSE = {"mistral": {"sliding_window": WINDOW}, "phi3": {"sliding_window": WINDOW}}
"""Bases whose layers all have windows."""
FAMILIES = {**SPARSE, **DENSE}
JOINT = {"token_keep": 0.3, "mlp_keep": 0.4, "neuron_keep": 0.5, "bits": 8}
DENSE_KEYS = {"mlp_keep": 0.4, "bits": 8}
STEPS = CALL["max_new_tokens"]


def windowed(family, dtype=torch.float32, **overrides):
    return tiny_base(family, dtype, **{**FAMILIES[family], **overrides})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("is_joint", [False, True], ids=["dense", "joint"])
def test_on(family, is_joint, ran):
    budget = {} if not is_joint else JOINT if family in SPARSE else DENSE_KEYS
    assert_same(model_of(windowed(family)), input_ids=prompts(2, 40), **budget)
    assert len(ran) >= STEPS - 1


@pytest.mark.parametrize("length", [3, 10, 15, 16, 17, 40])
def test_texts_shorter_and_longer_than_the_window(length, ran):
    assert_same(model_of(windowed("gemma3_text")), input_ids=prompts(1, length), token_keep=0.3)
    assert len(ran) >= STEPS - 1


def test_a_window_that_slides_through_its_storage_several_times(ran, monkeypatch):
    monkeypatch.setattr("sol_hf.cache.window_layer.WindowLayer.growth_slots", 5)
    model = model_of(windowed("gemma3_text"))
    assert_same(model, input_ids=prompts(2, 12), max_new_tokens=60, token_keep=0.3, mlp_keep=0.4)
    assert len(ran) >= 59


@pytest.mark.parametrize("budget", [{"mlp_keep": 0.4}, {"neuron_keep": 0.5}, {"bits": 5}, {"bits": [5, 16]}])
@pytest.mark.parametrize("bits_backend", ["fake", "nested"])
@pytest.mark.parametrize("family", ["gemma3_text", "mistral"])
def test_budget(family, budget, bits_backend, ran):
    model = model_of(windowed(family, **WIDE, vocab_size=96))
    ids = prompts(2, 40).clamp(max=95)
    assert_same(model, input_ids=ids, bits_backend=bits_backend, kv_refresh=False, **budget)
    assert len(ran) >= STEPS - 1


def test_best_tokens_of_layers_with_full_attention(ran):
    model = model_of(windowed("gemma3_text"), criterion="sketch", selection="layer")
    assert_same(model, input_ids=prompts(2, 80), token_keep=0.3)
    assert len(ran) >= STEPS - 1


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(
    family=st.sampled_from(["gemma3_text", "qwen3", "mistral"]),
    lengths=st.lists(st.integers(2, 60), min_size=1, max_size=4),
    bits=st.sampled_from([5, 16]),
    keep=st.sampled_from([0.3, 1.0]),
)
def test_drawn_rows(family, lengths, bits, keep):
    rows = [prompts(1, length, seed=length)[0] for length in lengths]
    assert_same(model_of(windowed(family)), token_keep=keep, bits=bits, **left_padded(rows))


def test_rows_do_not_affect_each_other(ran):
    model, rows = model_of(windowed("gemma3_text")), [prompts(1, length, seed=length)[0] for length in (9, 50)]
    together = logits_of(model, "fast", token_keep=[0.3, 1.0], **left_padded(rows))
    for row, keep in enumerate((0.3, 1.0)):
        alone = logits_of(model, "fast", token_keep=keep, input_ids=rows[row][None])
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-4, rtol=1e-4)
    assert ran


@pytest.mark.parametrize("kv_refresh", [True, False, "auto"])
def test_with_a_refresh_between(kv_refresh, ran):
    model = model_of(windowed("gemma3_text"), episode_length=4)
    assert_same(model, input_ids=prompts(2, 30), max_new_tokens=20, kv_refresh=kv_refresh, **JOINT)
    assert len(ran) >= 19


def turns(model, backend, crop=0, **budget) -> torch.Tensor:
    """Logits of a second turn over the cache of the first one."""
    call = {**CALL, "controller": FixedController(), "backend": backend, **budget}
    first = model.generate(prompts(2, 30), **call)
    cache, text = first.past_key_values, first.sequences
    if crop:
        cache.crop(-crop)
        text = text[:, : cache.get_seq_length()]
    text = torch.cat([text, prompts(2, 7, seed=5)], dim=1)
    second = model.generate(text, attention_mask=torch.ones_like(text), past_key_values=cache, **call)
    return torch.stack(second.logits, dim=1)


@pytest.mark.parametrize("crop", [0, 3])
@pytest.mark.parametrize("family", ["gemma3_text", "mistral"])
def test_several_turns_and_a_cropped_cache(family, crop, ran):
    budget = JOINT if family in SPARSE else DENSE_KEYS
    model = model_of(windowed(family))
    by_modules, by_programs = (turns(model, backend, crop, **budget) for backend in ("reference", "fast"))
    torch.testing.assert_close(by_modules, by_programs, atol=1e-4, rtol=1e-4)
    assert len(ran) == 2 * STEPS


def test_beams_move_the_windows(ran):
    model = model_of(windowed("gemma3_text"))
    call = dict(max_new_tokens=8, do_sample=False, num_beams=3, token_keep=0.3, controller=FixedController())
    texts = [model.generate(prompts(2, 30), backend=backend, **call) for backend in ("reference", "fast")]
    assert torch.equal(*texts) and ran


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gemma3_text", "mistral"])
def test_in_bfloat16(family, ran):
    model = model_of(windowed(family, torch.bfloat16))
    exact = model_of(windowed(family))
    exact.base.load_state_dict({name: value.float() for name, value in model.base.state_dict().items()})
    call = dict(context_length=20, bits=16, mlp_keep=0.4, controller=FixedController())
    ids = prompts(1, 60)
    expected = exact.score(ids, backend="reference", **call).logprobs
    errors = [
        float((model.score(ids, backend=backend, **call).logprobs - expected).abs().mean())
        for backend in ("reference", "fast")
    ]
    assert len(ran) == 39
    assert errors[1] < 1.2 * errors[0] < 0.3


def test_few_keys_of_a_base_with_windows_alone_run_by_its_modules(ran):
    """Pages of a window begin before it, which the program does not know."""
    assert_same(model_of(windowed("mistral")), input_ids=prompts(1, 40), token_keep=0.3)
    assert not ran


class TestSoftCaps:
    """Gemma 2 bends the scores of its attention, and its logits."""

    CAPS = dict(attn_logit_softcapping=3.0, final_logit_softcapping=2.0)

    @pytest.mark.parametrize("caps", [{}, CAPS], ids=["as published", "small"])
    @pytest.mark.parametrize("budget", [{}, DENSE_KEYS], ids=["dense", "joint"])
    def test_they_are_part_of_the_program(self, caps, budget, ran):
        base = tiny_base("gemma2", **MIXED, **caps)
        assert_same(model_of(base), input_ids=prompts(2, 40), **budget)
        assert len(ran) >= STEPS - 1

    @pytest.mark.parametrize("rule", [{}, {"criterion": "sketch", "selection": "layer"}], ids=["quest", "sketch"])
    def test_with_a_share_of_the_keys(self, rule, ran):
        model = model_of(tiny_base("gemma2", **MIXED, **self.CAPS), **rule)
        assert_same(model, input_ids=prompts(2, 40), token_keep=0.3, kv_refresh=False)
        assert len(ran) >= STEPS - 1

    def test_without_them_the_text_would_be_another(self):
        bent, plain = (tiny_base("gemma2", **MIXED, **caps) for caps in (self.CAPS, dict.fromkeys(self.CAPS)))
        logits = [logits_of(model_of(base), "fast", input_ids=prompts(1, 40)) for base in (bent, plain)]
        assert float((logits[0] - logits[1]).abs().amax()) > 0.1
        assert_same(model_of(plain), input_ids=prompts(1, 40))

    def test_a_cap_that_the_config_has_and_the_base_does_not_apply(self, ran):
        base = tiny_base("llama")
        base.config.final_logit_softcapping = 1.0
        assert_same(model_of(base), input_ids=prompts(1, 40), mlp_keep=0.4)
        assert not ran
