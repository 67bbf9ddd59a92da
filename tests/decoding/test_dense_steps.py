# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Dense texts by the fast paths, if a call asks for them: the base's text on our cache. Otherwise the base itself."""

import pytest
import torch
from transformers import (
    DynamicCache,
    LogitsProcessorList,
    TopKLogitsWarper,
    pipeline,
)
from transformers.generation.streamers import BaseStreamer

from sol_hf import Budget, FixedController, SOLCache, SOLForCausalLM
from sol_hf.decoding import compiled_step
from sol_hf.execution.dispatch import Operation
from support.bases import tiny_base
from support.cases import HALF, control, prompts, sol_model
from support.policy_folders import tiny_tokenizer


DENSE = [{}, {"compute": 1.0}, {"token_keep": 1.0, "mlp_keep": 1.0, "bits": 16}, {"budget": Budget(token_keep=[1, 1])}]
CALL = dict(max_new_tokens=12, do_sample=False, return_dict_in_generate=True, output_logits=True, pad_token_id=0)


@pytest.fixture
def operations(monkeypatch):
    """Backends of all operations that ran."""
    ran, own = [], Operation.run

    def run(self, call, backend):
        ran.append(backend)
        return own(self, call, backend)

    monkeypatch.setattr(Operation, "run", run)
    return ran


@pytest.mark.parametrize("dense", DENSE)
def test_fast_gives_the_text_of_the_base_on_our_cache(dense, operations):
    model, ids = sol_model(), prompts()
    output = model.generate(ids, backend="fast", **dense, **CALL)
    assert set(operations) == {"fast"}
    expected = model.base.generate(ids, **CALL)
    assert torch.equal(output.sequences, expected.sequences)
    torch.testing.assert_close(torch.stack(output.logits), torch.stack(expected.logits), atol=1e-4, rtol=1e-4)
    assert type(output.past_key_values) is SOLCache and len(output.past_key_values.trace) == CALL["max_new_tokens"]
    assert output.realised.tolist() == [[1, 1, 16]] * 2
    assert output.actions.shape == (2, 12) and set(output.actions.flatten().tolist()) == {model.action_space.dense_id}


@pytest.fixture
def programs(monkeypatch):
    """For every step, whether it ran as one compiled program."""
    ran, own = [], compiled_step.run_step

    def run(*arguments):
        output = own(*arguments)
        ran.append(output is not None)
        return output

    monkeypatch.setattr(compiled_step, "run_step", run)
    return ran


@pytest.mark.parametrize(
    ("family", "compiled"), [("llama", True), ("qwen3", True), ("phi3", True), ("gpt_neox", False)]
)
def test_a_base_without_a_policy_runs_by_one_line_and_compiled_where_it_is_recognised(
    family, compiled, programs, caplog
):
    base, ids = tiny_base(family), prompts()
    output = SOLForCausalLM.from_base(base).generate(ids, backend="fast", **CALL)
    assert torch.equal(output.sequences, base.generate(ids, **CALL).sequences)
    assert programs == [compiled] * CALL["max_new_tokens"] and "never trained" not in caplog.text


@pytest.mark.parametrize(
    "options",
    [
        dict(num_beams=3, num_return_sequences=2),
        dict(do_sample=True, num_return_sequences=2),
        dict(repetition_penalty=1.3, no_repeat_ngram_size=2),
        dict(logits_processor=LogitsProcessorList([TopKLogitsWarper(3)])),
        dict(past_key_values="ours"),
    ],
    ids=lambda options: "-".join(options),
)
def test_what_generate_does_besides_runs_on_compiled_steps(options, programs):
    model, ids = SOLForCausalLM.from_base(tiny_base("llama")), prompts()
    texts = []
    for generate, backend in ((model.base.generate, {}), (model.generate, {"backend": "fast"})):
        torch.manual_seed(5)
        call = CALL | options | backend
        if "past_key_values" in options:
            call["past_key_values"] = model.new_cache() if backend else DynamicCache()
        texts.append(generate(ids, **call).sequences)
    assert torch.equal(*texts) and programs and all(programs)


def test_a_streamer_and_a_pipeline_get_the_text_of_the_base(programs):
    base = tiny_base("llama")
    model, shown = SOLForCausalLM.from_base(base), []

    class Streamer(BaseStreamer):
        def put(self, value):
            shown.extend(value.flatten().tolist())

        def end(self):
            shown.append("end")

    ids = prompts()[:1]
    text = model.generate(ids, backend="fast", streamer=Streamer(), max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert shown == [*text[0].tolist(), "end"]
    settings = dict(max_new_tokens=6, do_sample=False, pad_token_id=0)
    before = len(programs)
    answers = [
        pipeline("text-generation", model=each, tokenizer=tiny_tokenizer())("w3 w5", **settings, **options)
        for each, options in ((base, {}), (model, {"backend": "fast"}))
    ]
    assert answers[0] == answers[1] and programs[before:] == [True] * 6


@pytest.mark.parametrize("backend", [None, "auto", "reference"])
@pytest.mark.parametrize("dense", DENSE)
def test_other_backends_leave_a_dense_call_to_the_base(dense, backend, operations):
    model, ids = sol_model(), prompts()
    output = model.generate(ids, backend=backend, **dense, **CALL)
    expected = model.base.generate(ids, **CALL)
    assert not operations and type(output.past_key_values) is DynamicCache
    assert all(torch.equal(*pair) for pair in zip(output.logits, expected.logits, strict=True))


@pytest.mark.parametrize("dense", DENSE[:2])
def test_a_stored_backend_is_a_default_and_no_request(dense, operations):
    model, ids = sol_model(), prompts()
    model.generation_config.backend = "fast"
    output, expected = model.generate(ids, **dense, **CALL), model.base.generate(ids, **CALL)
    assert not operations and all(torch.equal(*pair) for pair in zip(output.logits, expected.logits, strict=True))
    model.generate(ids, **HALF, **CALL)
    assert set(operations) == {"fast"}


@pytest.mark.parametrize("family", ["gpt_neox", "gemma3_text", "mistral"])
def test_on(family):
    model, ids = control(tiny_base(family)), prompts()
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    for options in (CALL, CALL | dict(num_beams=2), CALL | dict(do_sample=True, num_return_sequences=2)):
        outputs = []
        for call in (model.base.generate, lambda *a, **k: model.generate(*a, backend="fast", **k)):
            torch.manual_seed(5)
            outputs.append(call(ids, attention_mask=mask, **options).sequences)
        assert torch.equal(*outputs)


def test_a_space_without_a_dense_action_runs_dense_all_the_same():
    base = tiny_base("llama")
    model = control(base, token_keep=[0.5], mlp_keep=[0.4, 0.7], bits=[2, 8])
    output = model.generate(prompts(), backend="fast", **CALL)
    assert torch.equal(output.sequences, base.generate(prompts(), **CALL).sequences)
    assert output.realised.tolist() == [[1, 1, 16]] * 2


def test_the_next_turn_may_have_a_budget_and_the_one_after_none():
    model, ids = sol_model(), prompts()
    more = torch.randint(3, 99, (2, 6))
    settings = dict(
        max_new_tokens=9, do_sample=False, pad_token_id=0, return_dict_in_generate=True, output_logits=True
    )

    def chat(backend):
        cache, text, logits = model.new_cache(), ids, []
        for options in ({}, dict(controller=FixedController(), **HALF), {}):
            if not options and backend:
                options = {"backend": backend}
            mask = torch.ones_like(text)
            output = model.generate(text, attention_mask=mask, past_key_values=cache, **settings, **options)
            text = torch.cat([output.sequences, more], dim=1)
            logits += output.logits
        return text, torch.stack(logits)

    (fast, found), (plain, wanted) = chat("fast"), chat(None)
    assert torch.equal(fast, plain)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)  # the episode under the budget is refreshed in both


def test_scores_are_those_of_one_forward_under_any_backend(operations):
    model, ids = sol_model(), prompts()
    scores = [model.score(ids, context_length=9, backend=backend).logprobs for backend in (None, "fast")]
    assert torch.equal(*scores) and not operations


def test_what_cannot_run_on_our_cache_is_refused_before_any_compute(monkeypatch):
    model, ids = sol_model(), prompts()

    def forward(input_ids, attention_mask=None, position_ids=None, past_key_values=None):
        raise AssertionError("there was compute")

    monkeypatch.setattr(model.base, "forward", forward)
    for options, message in (
        (dict(past_key_values=DynamicCache()), "SOLCache"),
        (dict(use_cache=False), "needs the cache"),
        (dict(prompt_lookup_num_tokens=2), "cannot run"),
    ):
        with pytest.raises(ValueError, match=message):
            model.generate(ids[:1], backend="fast", max_new_tokens=4, **options)
    with pytest.raises(ValueError, match="`cuda_graphs` needs a GPU"):
        model.generate(ids, cuda_graphs=True, max_new_tokens=4)
