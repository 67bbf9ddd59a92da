# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Attention that is set up once for many steps is that of every step, whatever changes between them."""

import pytest
import torch

from sol_hf import FixedController
from sol_hf.execution.stack import cache_steps
from support.bases import tiny_base
from support.cases import left_padded, prompts
from support.programs import model_of


RULES = {
    "all keys": ({}, {"mlp_keep": 0.4}),
    "pages": ({}, {"token_keep": 0.3}),
    "tokens": ({"criterion": "sketch", "selection": "layer"}, {"token_keep": 0.3}),
}


@pytest.fixture
def set_up(monkeypatch):
    """Every time that the attention of all layers is set up from the beginning."""
    seen, own = [], cache_steps.AttentionOfLayers
    monkeypatch.setattr(cache_steps, "AttentionOfLayers", lambda *given: seen.append(1) or own(*given))
    return seen


@pytest.mark.parametrize("rule", RULES)
def test_texts_that_outgrow_what_was_set_up(rule, set_up, ran):
    settings, budget = RULES[rule]
    model, ids = model_of(tiny_base("llama"), **settings), prompts(2, 190)
    call = dict(context_length=70, controller=FixedController(), kv_refresh=False, **budget)
    found, expected = (model.score(ids, backend=backend, **call).logprobs for backend in ("fast", "reference"))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert len(ran) == 119 and len(set_up) <= 3 * 2  # full and sparse steps have their own


@pytest.mark.parametrize("rule", RULES)
def test_turns_with_other_rows_threads_and_crops(rule, ran):
    settings, budget = RULES[rule]
    texts, threads = {}, torch.get_num_threads()
    for backend in ("fast", "reference"):
        model = model_of(tiny_base("llama"), **settings)
        call = dict(
            max_new_tokens=7, do_sample=False, controller=FixedController(), backend=backend, bits=16, **budget
        )
        cache, given = model.new_cache(), left_padded([prompts(1, n, seed=n)[0] for n in (80, 93)])
        try:
            for turn in range(3):
                text = model.generate(**given, past_key_values=cache, pad_token_id=0, **call)
                torch.set_num_threads(1 + turn % 2)
                if turn == 1:
                    cache.crop(-3)
                    text = text[:, :-3]
                ids = torch.cat([text, prompts(2, 5, seed=turn)], dim=1)
                mask = torch.ones_like(ids)
                mask[0, :13] = 0
                given = dict(input_ids=ids, attention_mask=mask)
        finally:
            torch.set_num_threads(threads)
        texts[backend] = text
    assert torch.equal(texts["fast"], texts["reference"]) and ran
