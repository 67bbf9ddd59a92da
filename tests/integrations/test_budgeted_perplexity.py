# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Perplexity under a budget, as users of `evaluate` call it."""

import uuid

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from sol_hf import BudgetedPerplexity, FixedController
from support.bases import tiny_base
from support.cases import HALF, control, sol_model


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
    metric = BudgetedPerplexity(experiment_id=uuid.uuid4().hex)  # by it, evaluate waits for no other instance
    return metric.compute(predictions=texts, model=model, tokenizer=tokenizer, **options)


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


def store_budget(model) -> None:
    for axis, target in HALF.items():
        setattr(model.generation_config, axis, target)


def test_the_dense_controller_is_the_base_also_with_a_stored_budget(tokenizer):
    model = sol_model()
    base = compute(model, tokenizer)
    store_budget(model)
    assert compute(model, tokenizer) != base
    assert compute(model, tokenizer, controller="dense") == base
    with pytest.raises(ValueError, match="did you mean `token_keep`"):
        compute(model, tokenizer, controller="dense", token_kep=0.5)
    with pytest.raises(ValueError, match='`action_processors` have nothing to act on with `controller="dense"`'):
        compute(model, tokenizer, controller="dense", action_processors=[print])
    with pytest.raises(ValueError, match='`kv_dtype` needs a cache of ours; `controller="dense"` runs the base'):
        compute(model, tokenizer, controller="dense", kv_dtype="bfloat16")


def test_the_dense_controller_without_a_dense_action(tokenizer):
    model = control(tiny_base("llama"), token_keep=[0.2, 0.5])
    assert compute(model, tokenizer, controller="dense")["mean_realised"]["token_keep"] == 1
    store_budget(model)
    with pytest.raises(ValueError, match="remove the budget from `model.generation_config`"):
        compute(model, tokenizer, controller="dense")


def test_a_budget_per_text_is_that_of_its_text(model, tokenizer):
    controller, keeps = FixedController(across_rows=False), [0.2, 0.5, 1.0]
    alone = [
        compute(model, tokenizer, [text], controller=controller, token_keep=keep)
        for text, keep in zip(TEXTS, keeps, strict=True)
    ]
    for size in (2, 16):
        found = compute(model, tokenizer, controller=controller, token_keep=keeps, batch_size=size)
        assert found["perplexities"] == pytest.approx([one["mean_perplexity"] for one in alone], rel=1e-5)
    with pytest.raises(ValueError, match="The budget has 2 rows, but the input has 3"):
        compute(model, tokenizer, token_keep=[0.2, 0.5], batch_size=2)


def test_the_fixed_schedule_of_a_text_does_not_depend_on_its_batch(model, tokenizer):
    one, all_at_once = (compute(model, tokenizer, controller="fixed", batch_size=size, **HALF) for size in (1, 16))
    assert one["perplexities"] == pytest.approx(all_at_once["perplexities"], rel=1e-5)
    assert one["realised"] == all_at_once["realised"]


def test_texts_may_be_added_one_by_one(model, tokenizer):
    metric = BudgetedPerplexity()
    for text in TEXTS:
        metric.add(predictions=text)
    options = dict(model=model, tokenizer=tokenizer, controller="fixed", **HALF)
    assert metric.compute(**options) == compute(**options)


def test_long_texts_are_cut(model, tokenizer):
    cut = compute(model, tokenizer, max_length=9)
    assert cut == compute(model, tokenizer, [" ".join(text.split()[:8]) for text in TEXTS])


@pytest.fixture
def no_compute(model, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("computed before the check")

    monkeypatch.setattr(type(model), "score", refuse)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(batch_size=0), "`batch_size` must be at least 1, got 0"),
        (dict(batch_size=-1), "`batch_size` must be at least 1, got -1"),
        (dict(texts=[]), "There is no text: give at least one in `predictions`"),
        (dict(max_length=0), "`max_length` must be at least 2, .*, got 0"),
        (dict(max_length=-3), "`max_length` must be at least 2, .*, got -3"),
        (dict(max_length=5, context_length=4), "`max_length` must be at least 6"),
        (dict(token_keep=0.01), "below the smallest level"),
        (dict(return_logits=True), "Unknown options"),
    ],
)
@pytest.mark.usefixtures("no_compute")
def test_wrong_options_are_named_before_any_compute(model, tokenizer, options, message):
    with pytest.raises(ValueError, match=message):
        compute(model, tokenizer, **options)


def test_wrong_input(model, tokenizer):
    with pytest.raises(ValueError, match="Text 2 has 10 tokens, so nothing is left to score after a context of 10"):
        compute(model, tokenizer, context_length=10)
    with pytest.raises(ValueError, match="`context_length` must be at least 1, got 0"):
        compute(model, tokenizer, add_start_token=False)
    nameless = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, unk_token="w00")
    with pytest.raises(ValueError, match="has no start token: pass `add_start_token=False`"):
        compute(model, nameless)


def test_bits_are_those_that_were_read_and_can_be_kept(tokenizer):
    model = control(tiny_base("llama"), bits=[3, 7, 16])
    options = dict(controller="fixed", bits_backend="nested", batch_size=3)
    assert compute(model, tokenizer, **options, bits=8)["mean_realised"]["bits"] == 8
    with pytest.raises(ValueError, match="`bits`=3.* is carried out with, 4"):
        compute(model, tokenizer, **options, bits=[3, 8, 8])
