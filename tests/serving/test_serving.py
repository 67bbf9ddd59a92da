# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A policy behind OpenAI's API, on loopback, through OpenAI's own client."""

import json
import threading
import urllib.request

import openai
import pytest
import torch

from sol_hf.serving.fields import CHAT, budget_fields
from support.bases import tiny_base
from support.cases import control
from support.policy_folders import tiny_tokenizer
from support.servers import NAME, serving, wait_until


TEXT = " ".join(f"w{number}" for number in range(3, 30))
BUDGET = dict(token_keep=0.6, mlp_keep=0.7, bits=8)


@pytest.fixture(scope="module")
def server():
    with serving(control(tiny_base("llama")), tiny_tokenizer(), max_new_tokens=220) as running:
        yield running


def alone(server, content: str, new_tokens: int, **options):
    """What the library generates for a chat of one message."""
    chat = [{"role": "user", "content": content}]
    ids = server.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    call = dict(max_new_tokens=new_tokens, do_sample=False, return_dict_in_generate=True)
    output = server.model.generate(ids, **call, **options)
    return server.tokenizer.decode(output.sequences[0, ids.shape[1] :], skip_special_tokens=True), output


def read(stream) -> tuple[str, list]:
    """The text of a stream, and its chunks."""
    chunks = list(stream)
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks), chunks


def refused(server, **fields) -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as raised:
        server.chat(TEXT, **{"max_tokens": 4} | fields)
    return raised.value


def test_a_budget_of_the_request_is_kept_and_reported(server):
    answer = server.chat(TEXT, max_tokens=12, **BUDGET)
    text, output = alone(server, TEXT, 12, **BUDGET)
    assert answer.choices[0].message.content == text and answer.choices[0].finish_reason == "length"
    spent = answer.metrics["sol"]
    assert spent["requested"] == BUDGET and spent["bytes_share"] > 0
    assert list(spent["realised"].values()) == pytest.approx(output.realised[0].tolist())
    assert spent["net_keep"] == pytest.approx((output.realised[0] / server.model.action_space.scales).mean().item())
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (27, 12)


def test_a_stream_has_the_same_text_with_usage_and_metrics_in_its_last_chunk(server):
    whole = server.chat(TEXT, max_tokens=12, **BUDGET)
    text, chunks = read(server.chat(TEXT, stream=True, max_tokens=12, **BUDGET))
    assert text == whole.choices[0].message.content and len(chunks) >= 12
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    last = chunks[-1]
    assert last.usage.completion_tokens == 12 and last.choices[0].finish_reason == "length"
    spent, expected = last.metrics["sol"], whole.metrics["sol"]
    assert {**spent, "waited_seconds": 0} == {**expected, "waited_seconds": 0}
    assert not any(hasattr(chunk, "metrics") for chunk in chunks[:-1])


def test_without_a_budget_the_text_is_the_base_s(server):
    ids = torch.tensor([server.tokenizer(TEXT)["input_ids"]])
    dense = server.model.base.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
    for fields in ({}, {"lossless": True}, {"lossless": 4, "bits": 8}):
        answer = server.chat(TEXT, max_tokens=8, **fields)
        assert answer.choices[0].message.content == server.tokenizer.decode(dense, skip_special_tokens=True)
        spent = answer.metrics["sol"]
        assert spent["net_keep"] == 1 and ("bytes_share" in spent) == (not fields)
    assert 0 <= spent["agreement"] <= 1  # of drafts of four tokens


def test_the_agreement_of_a_lossy_text_can_be_asked_for(server):
    answer = server.chat(TEXT, max_tokens=8, measure_agreement=True, **BUDGET)
    assert answer.metrics["sol"]["agreement"] == alone(server, TEXT, 8, measure_agreement=True, **BUDGET)[1].agreement


def test_a_prompt_is_continued_without_a_template(server):
    create = server.client().completions.create
    whole = create(model=NAME, prompt=TEXT, max_tokens=6, extra_body=BUDGET)
    assert whole.choices[0].text == alone(server, TEXT, 6, **BUDGET)[0] and whole.metrics["sol"]["requested"] == BUDGET
    chunks = list(create(model=NAME, prompt=TEXT, max_tokens=6, stream=True, extra_body=BUDGET))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert chunks[-1].metrics["sol"]["realised"] == whole.metrics["sol"]["realised"]


def test_a_seed_repeats_a_sampled_text(server):
    texts = [server.chat(TEXT, max_tokens=10, temperature=1.5, seed=seed, **BUDGET) for seed in (1, 1, 2)]
    first, again, other = (answer.choices[0].message.content for answer in texts)
    assert first == again != other
    greedy = server.chat(TEXT, max_tokens=10, temperature=0, **BUDGET)
    assert greedy.choices[0].message.content == alone(server, TEXT, 10, **BUDGET)[0]


def test_a_stop_ends_the_text_and_is_not_part_of_it(server):
    words = server.chat(TEXT, max_tokens=12, **BUDGET).choices[0].message.content.split()
    stop = words[4]
    expected = " ".join(words[: words.index(stop)])
    for stream in (False, True):
        answer = server.chat(TEXT, stream=stream, max_tokens=12, stop=[stop, "never"], **BUDGET)
        text, reason = (
            (answer.choices[0].message.content, answer.choices[0].finish_reason)
            if not stream
            else (lambda found: (found[0], found[1][-1].choices[0].finish_reason))(read(answer))
        )
        assert text.strip() == expected and reason == "stop"


def test_other_settings_of_the_row_are_applied(server):
    biased = server.chat(TEXT, max_tokens=4, logit_bias={"7": 100}, **BUDGET)
    assert biased.choices[0].message.content == "w7 w7 w7 w7"
    varied = server.chat(TEXT, max_tokens=8, frequency_penalty=1.9, **BUDGET)
    assert varied.choices[0].message.content == alone(server, TEXT, 8, repetition_penalty=2.9, **BUDGET)[0]


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        (dict(token_keep=0.01), "token_keep", "below the smallest level of the action space"),
        (dict(token_keep=[0.5, 0.6]), "token_keep", "must be a number"),
        (dict(bits="8"), "bits", "`bits` must be a number, got '8'"),
        (dict(bits=True), "bits", "must be a number"),
        (dict(mlp_keep=2), "mlp_keep", "`mlp_keep` must lie in (0, 1]"),
        (dict(neuron_keep=0.5), "neuron_keep", "The action space has no axis `neuron_keep`"),
        (dict(token_kep=0.5), "token_kep", "did you mean `token_keep`?"),
        (dict(compute=0.5), "compute", "alibrat"),
        (dict(compute=0.5, bits=8), "bits", "Pass either `compute` or a budget"),
        (dict(lossless="yes"), "lossless", "must be true, false, or the tokens of a draft"),
        (dict(lossless=900), "lossless", "A draft has 1 to 64 tokens"),
        (dict(budget_mode="firm", bits=8), None, "`budget_mode` must be one of hard, soft"),
        (dict(budget_mode=1, bits=8), "budget_mode", "must be a text"),
        (dict(measure_agreement=1, bits=8), "measure_agreement", "true or false"),
        (dict(max_tokens=0), "max_tokens", "at least 1"),
        (dict(max_tokens=221), "max_tokens", "gives at most 220"),
        (dict(temperature=3), "temperature", "from 0 to 2"),
        (dict(top_p=-1), "top_p", "from 0 to 1"),
        (dict(stop=""), "stop", "none of them empty"),
        (dict(n=2), "n", "`n` is not supported: leave it out"),
        (dict(response_format={"type": "json_object"}), "response_format", "not supported"),
        (dict(generation_config="{}"), "generation_config", "give its settings as fields"),
        (dict(logit_bias={"99": 1}), "logit_bias", "ids are 0..98"),
        (dict(frequency_penalty=-1), "frequency_penalty", "above -1"),
        (dict(chat_template_kwargs=[1]), "chat_template_kwargs", "must be a dict"),
    ],
)
def test_a_wrong_field_is_refused_before_any_compute(server, monkeypatch, fields, field, message):
    monkeypatch.setattr(server.batcher, "submit", lambda row: pytest.fail("it was computed"))
    error = refused(server, **fields)
    assert error.status_code == 422 and message in error.body["message"], error.body
    assert field is None or error.body["param"] == field


def test_fields_that_ask_for_nothing_are_accepted(server):
    neutral = dict(n=1, response_format={"type": "text"}, logprobs=False, user="u", neuron_keep=None)
    assert server.chat(TEXT, max_tokens=2, **neutral).usage.completion_tokens == 2


def test_lengths_and_sizes_have_limits(server):
    error = refused(server, model="other")
    assert error.status_code == 404 and "'tiny', not 'other'" in error.body["message"]
    long = " ".join(["w5"] * 300)
    with pytest.raises(openai.UnprocessableEntityError, match="300 tokens; this server takes at most 255"):
        server.chat(long, max_tokens=1)
    with pytest.raises(openai.UnprocessableEntityError, match="can be at most 56, got 60"):
        server.chat(" ".join(["w5"] * 200), max_tokens=60)
    with pytest.raises(openai.APIStatusError) as raised:
        server.chat("w5 " * 400_000, max_tokens=1)
    assert raised.value.status_code == 413
    with pytest.raises(openai.UnprocessableEntityError, match="one message"):
        server.client().chat.completions.create(model=NAME, messages=[])
    for content in (7, [{"type": "image_url", "image_url": {"url": "x"}}]):
        with pytest.raises(openai.UnprocessableEntityError, match="text"):
            server.client().chat.completions.create(model=NAME, messages=[{"role": "user", "content": content}])


def test_a_full_queue_says_so(monkeypatch):
    limits = dict(rows=1, batches=1, queue=1, window=0)
    with serving(control(tiny_base("llama")), tiny_tokenizer(), **limits) as server:
        answers: list = []
        threads = [threading.Thread(target=lambda: answers.append(server.chat(TEXT, max_tokens=3))) for _ in range(2)]
        with server.batcher.turns:  # nothing goes on
            for number, thread in enumerate(threads):
                thread.start()
                wait_until(lambda n=number: len(server.batcher.running) + server.batcher.waiting == n + 1)
            error = refused(server)
            assert error.status_code == 503 and "The server is busy" in error.body["message"]
            assert error.response.headers["retry-after"] == "1"
        for thread in threads:
            thread.join(20)
        assert [answer.usage.completion_tokens for answer in answers] == [3, 3]


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_row(server, stream):
    turns = server.batcher.turns
    if stream:
        chunks = server.chat(TEXT, stream=True, max_tokens=200, **BUDGET)
        wait_until(lambda: server.batcher.running)
        with turns:
            (row,) = server.batcher.running
            chunks.close()
            chunks.response.close()
            wait_until(lambda: row.is_cancelled)
    else:
        with turns:
            with pytest.raises(openai.APITimeoutError):
                server.client(timeout=0.2).completions.create(model=NAME, prompt=TEXT, max_tokens=200)
            (row,) = server.batcher.running
            wait_until(lambda: row.is_cancelled)
    wait_until(lambda: not server.batcher.running)
    assert row.total_tokens < 200 and row.finish_reason == "cancelled"


def test_a_request_begins_at_the_next_step_of_those_that_run(server):
    long = server.chat(TEXT, stream=True, max_tokens=60, **BUDGET)
    wait_until(lambda: server.batcher.running)
    (row,) = server.batcher.running
    short = server.chat(TEXT, max_tokens=3, **BUDGET)
    assert short.usage.completion_tokens == 3 and not row.is_over
    _, chunks = read(long)
    assert chunks[-1].usage.completion_tokens == 60


def test_an_error_in_a_step_reaches_the_clients_and_the_server_goes_on(server, monkeypatch):
    with monkeypatch.context() as broken:
        message = 'out of "memory"'
        broken.setattr(server.model, "generate", lambda *_, **__: (_ for _ in ()).throw(RuntimeError(message)))
        error = refused(server)
        assert error.status_code == 500 and message in error.body["message"]
        with pytest.raises(openai.APIError, match=message):
            read(server.chat(TEXT, stream=True, max_tokens=3))
    assert server.chat(TEXT, max_tokens=3).usage.completion_tokens == 3


def test_the_routes_are_those_of_one_model(server):
    assert [model.id for model in server.client().models.list()] == [NAME]
    root = server.url.removesuffix("/v1")
    assert json.loads(urllib.request.urlopen(root + "/health").read()) == {"status": "ok"}
    for path in ("/load_model", "/reset", "/v1/responses"):
        with pytest.raises(urllib.error.HTTPError) as raised:
            urllib.request.urlopen(urllib.request.Request(root + path, b"{}", {"content-type": "application/json"}))
        assert raised.value.code == 404
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(urllib.request.Request(server.url + "/completions", b"[]"))
    assert raised.value.code == 422


def test_a_model_without_a_template_refuses_chats(server, monkeypatch):
    monkeypatch.setattr(server.tokenizer, "chat_template", None)
    assert "no chat template: use /v1/completions" in refused(server).body["message"]


def test_every_axis_and_option_is_a_field():
    assert {"token_keep", "mlp_keep", "bits", "neuron_keep", "compute", "lossless", "budget_mode"} <= set(
        budget_fields()
    )
    assert not set(budget_fields()) & set(CHAT)
