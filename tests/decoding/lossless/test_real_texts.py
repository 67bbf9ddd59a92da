# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""`generate(lossless=True)` on a real base in float32: texts after 200 prompts are those of transformers' generate.

Drafts of a real base are good, but not always right: where one is taken that the base would not have taken, or a key
of a draft stays in the cache, a text here is another one.
"""

import gzip
import json
from collections.abc import Iterator

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sol_hf import FixedController, SOLForCausalLM
from sol_hf.integrations.smollm2 import fetch_smollm2
from support.cases import left_padded
from support.paths import DATA


PROMPTS, ROWS, SAMPLED = 200, 4, 8
"""Prompts, how many of them are one batch, and how many are also continued by sampling, alone."""
CALL = dict(max_new_tokens=12, pad_token_id=2)
DRAFT = 3

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def model() -> SOLForCausalLM:
    return SOLForCausalLM.from_base(AutoModelForCausalLM.from_pretrained(fetch_smollm2(), dtype=torch.float32).eval())


@pytest.fixture(scope="module")
def prompts() -> list[torch.Tensor]:
    """Prompts of 6 to 22 tokens from all over some texts."""
    with gzip.open(DATA / "texts.jsonl.gz", "rt") as file:
        texts = " ".join(json.loads(line)["text"] for line in file)
    ids = torch.tensor(AutoTokenizer.from_pretrained(fetch_smollm2())(texts).input_ids)
    begins = [number * (len(ids) - 22) // PROMPTS for number in range(PROMPTS)]
    return [ids[begin : begin + 6 + number % 17] for number, begin in enumerate(begins)]


def batches(prompts: list[torch.Tensor]) -> Iterator[dict[str, torch.Tensor]]:
    for first in range(0, len(prompts), ROWS):
        yield left_padded(prompts[first : first + ROWS])


def test_greedy_texts_of_200_prompts_are_those_of_the_base(model, prompts):
    parted, agreement = [], []
    for number, batch in enumerate(batches(prompts)):
        expected = model.base.generate(**batch, do_sample=False, **CALL)
        output = model.generate(**batch, do_sample=False, lossless=DRAFT, return_dict_in_generate=True, **CALL)
        parted += [] if torch.equal(output.sequences, expected) else [number]
        agreement.append(output.agreement)
    assert not parted
    assert min(agreement) < 1 and sum(agreement) > len(agreement) / 2, "drafts that are never wrong would show nothing"


def test_a_budget_without_checks_gives_other_texts(model, prompts):
    """So the comparison of texts does find steps that are not dense."""
    levels = model.action_space.levels["bits"]
    budget = dict(bits=min(levels), bits_backend="nested", controller=FixedController())
    for batch in batches(prompts[: 3 * ROWS]):
        expected = model.base.generate(**batch, do_sample=False, **CALL)
        if not torch.equal(model.generate(**batch, do_sample=False, **budget, **CALL), expected):
            return
    pytest.fail("all texts under the smallest budget are those of the base")


@pytest.mark.parametrize("choice", [dict(temperature=0.8), dict(top_p=0.9, repetition_penalty=1.2)], ids=str)
def test_sampled_texts_with_the_same_seed_are_those_of_the_base(model, prompts, choice):
    for number, prompt in enumerate(prompts[:: PROMPTS // SAMPLED]):
        texts = []
        for generate, options in ((model.base.generate, {}), (model.generate, {"lossless": DRAFT})):
            torch.manual_seed(number)
            given = dict(attention_mask=torch.ones_like(prompt[None]), do_sample=True, **choice)
            texts.append(generate(prompt[None], **given, **options, **CALL))
        assert torch.equal(*texts), f"prompt {number}"
