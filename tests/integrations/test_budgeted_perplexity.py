# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Perplexity under a budget, as users of `evaluate` call it."""

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from sol_hf import BudgetedPerplexity, FixedController
from support.cases import HALF, sol_model


TEXTS = [
    "w11 w12 w13 w14 w15 w16 w17 w18 w19 w20 w21",
    "w30 w31 w32 w33 w34 w35 w36 w37 w38 w39 w40 w41 w42 w43 w44 w45",
    "w50 w51 w52 w53 w54 w55 w56 w57 w58 w59",
]


@pytest.fixture(scope="module")
def model():
    return sol_model()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({f"w{number:02d}": number for number in range(99)}, unk_token="w00"))
    words.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w00", bos_token="w01")


def compute(model, tokenizer, texts=TEXTS, **options) -> dict:
    return BudgetedPerplexity().compute(predictions=texts, model=model, tokenizer=tokenizer, **options)


def expected(model, tokenizer, text: str, dense: int, start: bool = True, **options) -> tuple[float, list[float]]:
    ids = torch.tensor([[1] * start + tokenizer(text)["input_ids"]])
    output = model.score(ids, context_length=dense, **options)
    return (-output.logprobs.mean()).exp().item(), output.realised[0].tolist()


@pytest.mark.parametrize("context_length, start, dense", [(0, True, 0), (4, True, 4), (5, False, 4)])
def test_values_are_those_of_score(model, tokenizer, context_length, start, dense):
    options = dict(**HALF, controller=FixedController(across_rows=False))
    found = compute(model, tokenizer, context_length=context_length, add_start_token=start, batch_size=2, **options)
    for text, perplexity, realised in zip(TEXTS, found["perplexities"], found["realised"], strict=True):
        value, means = expected(model, tokenizer, text, dense, start, **options)
        assert perplexity == pytest.approx(value, rel=1e-5) and realised == pytest.approx(means)
    assert found["mean_perplexity"] == pytest.approx(sum(found["perplexities"]) / 3)
    assert found["mean_realised"]["bits"] == pytest.approx(sum(row[2] for row in found["realised"]) / 3)


def test_without_a_budget_it_is_the_perplexity_of_the_base(model, tokenizer):
    found = compute(model, tokenizer, TEXTS[:1])
    ids = torch.tensor([[1, *range(11, 22)]])
    assert found["mean_perplexity"] == pytest.approx(model.base(ids, labels=ids).loss.exp().item(), rel=1e-5)
    assert found["mean_realised"] == {"token_keep": 1, "mlp_keep": 1, "bits": 16}
    assert compute(model, tokenizer, TEXTS[:1], **HALF)["mean_perplexity"] != pytest.approx(found["mean_perplexity"])


def test_controllers_by_name(model, tokenizer):
    named = compute(model, tokenizer, controller="drift", **HALF)
    assert named != compute(model, tokenizer, controller="policy", **HALF)
    assert compute(model, tokenizer, controller="dense", **HALF) == compute(model, tokenizer)
    with pytest.raises(ValueError, match="Did you mean 'drift'"):
        compute(model, tokenizer, controller="drif", **HALF)


def test_texts_may_be_added_one_by_one(model, tokenizer):
    metric = BudgetedPerplexity()
    for text in TEXTS:
        metric.add(predictions=text)
    options = dict(model=model, tokenizer=tokenizer, controller="fixed", **HALF)
    assert metric.compute(**options) == compute(**options)


def test_long_texts_are_cut(model, tokenizer):
    cut = compute(model, tokenizer, max_length=9)
    assert cut == compute(model, tokenizer, [" ".join(text.split()[:8]) for text in TEXTS])


def test_wrong_input(model, tokenizer):
    with pytest.raises(ValueError, match="Text 2 has 10 tokens, so nothing is left to score after a context of 10"):
        compute(model, tokenizer, context_length=10)
    with pytest.raises(ValueError, match="`context_length` must be at least 1, got 0"):
        compute(model, tokenizer, add_start_token=False)
    nameless = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, unk_token="w00")
    with pytest.raises(ValueError, match="has no start token: pass `add_start_token=False`"):
        compute(model, nameless)
