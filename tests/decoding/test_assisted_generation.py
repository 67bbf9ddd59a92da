# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""`base.generate(assistant_model=model)`: a model with a stored budget drafts for assisted generation."""

import pytest
import torch

from sol_hf import SOLForCausalLM
from support.cases import HALF, prompts, sol_model


CALL = dict(max_new_tokens=16, pad_token_id=0)


@pytest.fixture
def model() -> SOLForCausalLM:
    model = sol_model()
    for axis, target in HALF.items():
        setattr(model.generation_config, axis, target)
    return model


def test_the_text_is_that_of_the_base(model, monkeypatch):
    calls, own = [], SOLForCausalLM.generate

    def generate(self, *arguments, **options):
        calls.append(own(self, *arguments, **options))
        return calls[-1]

    expected = model.base.generate(prompts(1), do_sample=False, **CALL)
    monkeypatch.setattr(SOLForCausalLM, "generate", generate)
    assert (expected == 0).any(), "the text has the pad token, as chats have"
    output = model.base.generate(prompts(1), assistant_model=model, do_sample=False, **CALL)
    assert torch.equal(output, expected) and calls
    realised = torch.stack([call.realised for call in calls if "realised" in call])
    assert bool((realised[..., 2] < 16).any())


def test_sampled_texts_run_as_well(model):
    torch.manual_seed(2)
    output = model.base.generate(prompts(1), assistant_model=model, do_sample=True, **CALL)
    assert output.shape == (1, 20 + CALL["max_new_tokens"])


def test_only_one_row_at_a_time(model):
    with pytest.raises(ValueError, match="batch_size = 1"):
        model.base.generate(prompts(2), assistant_model=model, do_sample=False, **CALL)
