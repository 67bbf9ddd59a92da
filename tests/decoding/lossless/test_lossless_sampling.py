# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Sampled texts of `generate(lossless=True)` have the distribution of the base, whatever is drafted."""

import itertools

import pytest
import torch

from sol_hf import FixedController, SOLConfig, SOLForCausalLM
from sol_hf.decoding.lossless.proposals import generator_like_that_of
from support.bases import tiny_base


WORDS, LENGTH, TEXTS = 5, 3, 4000
CHEAP = dict(token_keep=0.2, mlp_keep=0.4, bits=3)
LEVELS = dict(token_keep=[0.2, 1.0], mlp_keep=[0.4, 1.0], bits=[3, 16])


def chances_of(base, prompt: torch.Tensor, temperature: float) -> torch.Tensor:
    """The chance of every text of `LENGTH` words after a prompt, `(WORDS ** LENGTH,)`."""
    texts = torch.tensor(list(itertools.product(range(WORDS), repeat=LENGTH)))
    whole = torch.cat([prompt.expand(len(texts), -1), texts], dim=1)
    with torch.no_grad():
        logits = base(whole).logits[:, prompt.shape[1] - 1 : -1].double() / temperature
    chances = logits.log_softmax(-1).gather(-1, texts[..., None]).sum(dim=(1, 2)).exp()
    assert abs(float(chances.sum()) - 1) < 1e-6
    return chances


@pytest.mark.parametrize("rows", [pytest.param(1, marks=pytest.mark.slow), 100])
def test_chi_square_over_all_texts_of_a_small_vocabulary(rows):
    """124 degrees of freedom, of which 190 are exceeded once in 9,000."""
    base = tiny_base("llama", vocab_size=WORDS)
    model = SOLForCausalLM.from_base(base, SOLConfig(**LEVELS))
    prompt = torch.randint(0, WORDS, (1, 14), generator=torch.Generator().manual_seed(3))
    chances, texts = chances_of(base, prompt, temperature=1.5), TEXTS if rows > 1 else TEXTS // 10
    seen = torch.zeros(WORDS**LENGTH)
    torch.manual_seed(0)
    agreement = []
    for _ in range(texts // rows):
        output = model.generate(
            prompt.expand(rows, -1),
            attention_mask=torch.ones(rows, prompt.shape[1], dtype=torch.long),
            lossless=2,
            controller=FixedController(),
            do_sample=True,
            temperature=1.5,
            top_k=0,
            max_new_tokens=LENGTH,
            return_dict_in_generate=True,
            **CHEAP,
        )
        digits = output.sequences[:, -LENGTH:] * torch.tensor([WORDS**place for place in reversed(range(LENGTH))])
        seen += torch.bincount(digits.sum(dim=1), minlength=WORDS**LENGTH)
        agreement.append(output.agreement)
    expected = chances * texts
    statistic = float(((seen - expected) ** 2 / expected).sum())
    assert statistic < 190 and sum(agreement) / len(agreement) < 0.9


def test_the_draws_of_a_draft_are_those_that_the_loop_will_make():
    """One draw of `torch.multinomial` is the largest of the chances over exponential noise; if that changes, drafts
    still agree with the loop where the model is sure, but no text changes."""
    chances = torch.rand(3, 50).softmax(-1)
    torch.manual_seed(4)
    own = generator_like_that_of(torch.device("cpu"))
    for _ in range(5):
        drawn = torch.multinomial(chances, num_samples=1)[:, 0]
        noise = torch.empty_like(chances).exponential_(1, generator=own)
        assert torch.equal(drawn, (chances / noise).argmax(dim=-1))


def test_sampling_leaves_the_random_numbers_as_the_base_does():
    model, ids = SOLForCausalLM.from_base(tiny_base("llama")), torch.arange(3, 20)[None]
    call = dict(do_sample=True, max_new_tokens=12, pad_token_id=0)
    following = []
    for generate, options in ((model.base.generate, {}), (model.generate, {"lossless": 4})):
        torch.manual_seed(9)
        generate(ids, **call, **options)
        following.append(generate(ids, **call, **options))
    assert torch.equal(*following)
