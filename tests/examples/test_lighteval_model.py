# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The model for lighteval gives what `generate` and `score` give under the budget.

lighteval is not installed with the tests, so stand-ins with its names and signatures take its place.
"""

import importlib.util
import runpy
import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace

import pytest
import torch

from sol_hf import SOLForCausalLM
from support.paths import ROOT


BUDGET = dict(token_keep=0.5, bits=8)


class StandIn:
    """The tokenizing of lighteval's models."""

    def tok_encode(self, text):
        return self.tokenizer.encode(text, add_special_tokens=self.add_special_tokens)

    def tok_encode_pair(self, context, continuations, pairwise):
        assert pairwise
        endings = [self.tokenizer.encode(ending, add_special_tokens=False) for ending in continuations]
        return [self.tok_encode(context)] * len(endings), endings


class Prompts:
    """Prompts are the query itself."""

    def __init__(self, use_chat_template, tokenizer, system_prompt):
        self.use_chat_template = use_chat_template

    def prepare_prompt(self, doc):
        return doc.query


@dataclass
class Response:
    """The fields of lighteval's responses that are set."""

    input: str
    input_tokens: list
    text: list = field(default_factory=list)
    output_tokens: list = field(default_factory=list)
    logprobs: list = field(default_factory=list)
    argmax_logits_eq_gold: list = field(default_factory=list)


NAMES = {
    "lighteval.models.abstract_model": dict(LightevalModel=StandIn),
    "lighteval.models.custom.custom_model": dict(CustomModelConfig=object),
    "lighteval.models.model_output": dict(ModelResponse=Response),
    "lighteval.tasks.prompt_manager": dict(PromptManager=Prompts),
    "lighteval.tasks.requests": dict(Doc=object),
}


@pytest.fixture
def evaluated(tmp_path, monkeypatch):
    """lighteval's model of a tiny policy, and that policy."""
    tiny = runpy.run_path(str(ROOT / "examples" / "generate.py"))
    tokenizer = tiny["tiny_tokenizer"]()
    tokenizer.save_pretrained(tmp_path / "base")
    tiny["tiny_base"](tokenizer).save_pretrained(tmp_path / "base")
    policy = SOLForCausalLM.from_base(tiny["tiny_base"](tokenizer))
    policy.save_pretrained(tmp_path / "policy")
    for name, values in NAMES.items():
        for part in (name.split(".")[:count] for count in range(1, name.count(".") + 2)):
            monkeypatch.setitem(sys.modules, ".".join(part), sys.modules.get(".".join(part)) or ModuleType(part[-1]))
        vars(sys.modules[name]).update(values)
    monkeypatch.setenv("SOL_BASE", str(tmp_path / "base"))
    monkeypatch.setenv("SOL_BUDGET", '{"token_keep": 0.5, "bits": 8}')
    spec = importlib.util.spec_from_file_location("lighteval_model", ROOT / "examples" / "lighteval_model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    parameters = SimpleNamespace(to_transformers_dict=lambda: dict(temperature=0, top_k=None))
    config = SimpleNamespace(model_name=str(tmp_path / "policy"), system_prompt=None, generation_parameters=parameters)
    return module.SOLLightevalModel(config), policy


def doc(**given):
    values = dict(query="Water boils at", choices=[" one", " two or three"], generation_size=12, stop_sequences=[])
    return SimpleNamespace(**values | given)


def test_texts_are_those_of_generate_under_the_budget(evaluated):
    model, policy = evaluated
    (answer,) = model.greedy_until([doc()])
    prompt = torch.tensor([answer.input_tokens])
    wanted = policy.generate(prompt, max_new_tokens=12, do_sample=False, **BUDGET)[0, prompt.shape[1] :].tolist()
    assert answer.output_tokens == [wanted]
    assert answer.text == [model.tokenizer.decode(wanted, skip_special_tokens=True)]


def test_a_text_ends_before_a_stop_sequence(evaluated):
    model, _ = evaluated
    (whole,) = model.greedy_until([doc()])
    stop = whole.text[0][4:6]
    (cut,) = model.greedy_until([doc(stop_sequences=[stop])])
    assert cut.text == [whole.text[0].split(stop)[0]]


def test_choices_are_scored_under_the_budget(evaluated):
    model, policy = evaluated
    (answer,) = model.loglikelihood([doc()])
    for ending, found in zip(answer.output_tokens, answer.logprobs, strict=True):
        tokens = torch.tensor([answer.input_tokens + ending])
        scored = policy.score(tokens, context_length=len(answer.input_tokens) - 1, **BUDGET)
        assert scored.logprobs.shape[1] == len(ending)
        assert found == pytest.approx(float(scored.logprobs.sum()), rel=1e-5)


def test_whole_texts_are_scored_but_for_the_first_token(evaluated):
    model, _ = evaluated
    (answer,) = model.loglikelihood_rolling([doc()])
    assert len(answer.logprobs) == len(answer.input_tokens) - 1
