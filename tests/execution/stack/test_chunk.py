# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Several tokens at once that run as one program, as in a KV refresh, give what the modules of the base give."""

import copy
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sol_hf import FixedController
from sol_hf.decoding import compiled_step
from sol_hf.decoding.base_forward import dense_forward
from sol_hf.decoding.forward_inputs import ForwardInputs
from sol_hf.decoding.session import DecodingSession
from sol_hf.execution.instrumentation import Instrumentation
from sol_hf.execution.plan import RefreshPlan
from support.bases import tiny_base
from support.cases import left_padded, prompts
from support.programs import CALL, WIDE, assert_same, model_of


FAMILIES = """llama qwen2 qwen3 gemma phi3 olmo2 smollm3 granite gemma3_text mistral cohere""".split()
SOFT_CAPS = dict(attn_logit_softcapping=1.0, final_logit_softcapping=8.0, query_pre_attn_scalar=1, sliding_window=16)
"""Of Gemma 2; small enough that without them logits are others."""


def capped(dtype: torch.dtype = torch.float32, **overrides):
    return tiny_base("gemma2", dtype, **{**SOFT_CAPS, **overrides})


@pytest.fixture
def refreshed(monkeypatch):
    """Shapes of the tokens of forwards that ran as programs."""
    found, own = [], compiled_step.run_refresh

    def run(base, plan, tokens, positions):
        output = own(base, plan, tokens, positions)
        if output is not None:
            found.append(tuple(tokens.shape[:2]))
        return output

    monkeypatch.setattr(compiled_step, "run_refresh", run)
    return found


def forward_after(model, prompt, tokens, backend, **given):
    """Logits and keys of `tokens` after a prompt, and its input of the LM head."""
    base, cache = model.base, model.new_cache()
    session = DecodingSession(base, cache)
    mask = given.get("attention_mask")
    with torch.no_grad(), session.running(), Instrumentation.of(base):
        model(prompt, attention_mask=mask, past_key_values=cache)
        whole = None if mask is None else torch.cat([mask, torch.ones_like(tokens)], dim=1)
        inputs, plan = ForwardInputs(tokens, whole), RefreshPlan(cache, backend)
        logits = dense_forward(session, inputs, tokens.shape[1], refresh=plan).logits
    return [logits, cache.episode.hidden_state, *(layer.keys for layer in cache.layers)]


def assert_same_forward(model, prompt, tokens, **given):
    expected, found = (forward_after(model, prompt, tokens, backend, **given) for backend in ("reference", "fast"))
    for one, other in zip(expected, found, strict=True):
        number = min(one.shape[-2], other.shape[-2]) if one.dim() == 4 else None
        a, b = (x if number is None else x[..., -number:, :] for x in (one, other))
        torch.testing.assert_close(b, a, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_keys_and_state(family, refreshed):
    model = model_of(tiny_base(family))
    assert_same_forward(model, prompts(1, 30), prompts(1, 5, seed=1))
    assert refreshed == [(1, 5)]


@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.integers(2, 140), min_size=1, max_size=3),
    tokens=st.integers(1, 10),
    base=st.sampled_from([*(partial(tiny_base, name) for name in ("llama", "gemma3_text", "cohere")), capped]),
)
def test_drawn_rows(lengths, tokens, base):
    rows = left_padded([prompts(1, length, seed=length)[0] for length in lengths])
    model = model_of(base())
    new = prompts(len(lengths), tokens, seed=2)
    assert_same_forward(model, rows["input_ids"], new, attention_mask=rows["attention_mask"])


def test_soft_caps(refreshed):
    """They bend the scores of the attention, and the logits."""
    assert_same_forward(model_of(capped()), prompts(2, 30), prompts(2, 5, seed=1))
    bent, plain = (
        forward_after(model_of(capped(attn_logit_softcapping=cap)), prompts(1, 30), prompts(1, 5, seed=1), "fast")[0]
        for cap in (1.0, None)
    )
    assert refreshed == [(2, 5), (1, 5), (1, 5)] and float((bent - plain).abs().amax()) > 0.1


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_keys_that_are_split_among_threads(threads, refreshed):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert_same_forward(model_of(tiny_base("llama")), prompts(1, 700), prompts(1, 7, seed=1))
    finally:
        torch.set_num_threads(before)
    assert refreshed == [(1, 7)]


@pytest.mark.parametrize(("lengths", "tokens"), [((40,), 5), ((130, 67), 2), ((191, 30, 64), 7), ((300,), 13)])
@pytest.mark.parametrize("base", [partial(tiny_base, "llama"), capped], ids=["llama", "capped"])
def test_bfloat16(refreshed, base, lengths, tokens):
    """Drafts' checks and refreshes multiply pairs of bfloat16 numbers where the processor can."""
    model, rows = model_of(base(dtype=torch.bfloat16)), len(lengths)
    batch = left_padded([prompts(1, length, seed=length)[0] for length in lengths])
    given, mask = prompts(rows, tokens, seed=1), batch["attention_mask"]
    expected, found = (
        forward_after(model, batch["input_ids"], given, backend, attention_mask=mask)[0].float()
        for backend in ("reference", "fast")
    )
    unrounded = model_of(copy.deepcopy(model.base).float())
    exact = forward_after(unrounded, batch["input_ids"], given, "reference", attention_mask=mask)[0]
    rounding = float((expected - exact).norm() / exact.norm())
    assert rounding < 0.1 and float((found - exact).norm() / exact.norm()) < 1.5 * rounding
    assert refreshed == [(rows, tokens)]


def test_keys_in_bfloat16_for_a_base_in_float32(refreshed):
    model = model_of(tiny_base("llama"), kv_dtype="bfloat16")
    expected, found = (
        forward_after(model, prompts(1, 40), prompts(1, 5, seed=1), backend)[0] for backend in ("reference", "fast")
    )
    torch.testing.assert_close(found, expected, atol=5e-3, rtol=5e-3)  # a key may be rounded to its other neighbour
    assert refreshed == [(1, 5)]


@pytest.mark.parametrize("bits_backend", ["fake", "nested"])
def test_refreshes_of_a_text(bits_backend, refreshed):
    model = model_of(tiny_base("llama", **WIDE))
    options = dict(bits_backend=bits_backend, token_keep=0.3, mlp_keep=0.4, input_ids=prompts(2, 50))
    assert_same(model, kv_refresh=True, **options)
    assert refreshed == [(2, 6)]


def test_of_rows_that_read_other_weights_modules_run(refreshed):
    model, options = model_of(tiny_base("llama", **WIDE)), dict(bits_backend="nested", token_keep=0.3)
    assert_same(model, kv_refresh=True, bits=[8, 16], input_ids=prompts(2, 50), **options)
    assert refreshed == []


def test_with_hooks_modules_run(refreshed):
    model, called = model_of(tiny_base("llama")), []
    model.base.model.layers[0].register_forward_hook(lambda *_: called.append(1))
    controlled = dict(token_keep=0.3, controller=FixedController(), backend="fast", kv_refresh=True)
    model.generate(prompts(1, 40), **controlled, **CALL)
    assert called and refreshed == []
