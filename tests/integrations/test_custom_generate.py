# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""`base.generate(custom_generate=POLICY, trust_remote_code=True, token_keep=0.5)` on a base that stays what it was."""

import copy
import gc
import shutil
import weakref

import pytest
import torch

from sol_hf import SOLForCausalLM
from sol_hf.errors import BudgetError
from sol_hf.integrations import custom_generate
from support.bases import tiny_base
from support.policy_folders import change_json, save_policy


BUDGET = dict(token_keep=0.6, mlp_keep=0.7, bits=8)
CALL = dict(max_new_tokens=8, do_sample=False, return_dict_in_generate=True, pad_token_id=0)
SAMPLED = dict(max_new_tokens=8, do_sample=True, temperature=0.7, pad_token_id=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_policy(tmp_path_factory.mktemp("policies") / "policy")


@pytest.fixture
def base():
    return tiny_base("llama")


@pytest.fixture
def ids():
    return torch.randint(1, 90, (2, 20), generator=torch.Generator().manual_seed(0))


def under_policy(base, ids, folder, **options):
    return base.generate(ids, custom_generate=str(folder), trust_remote_code=True, **options)


def test_it_gives_the_text_of_the_wrapped_model(folder, base, ids):
    expected = SOLForCausalLM.from_pretrained(folder, base=tiny_base("llama")).generate(ids, **CALL, **BUDGET)
    output = under_policy(base, ids, folder, **CALL, **BUDGET)
    assert torch.equal(output.sequences, expected.sequences) and torch.equal(output.actions, expected.actions)
    assert not torch.equal(output.sequences, base.generate(ids, **CALL).sequences)


def test_without_a_budget_it_is_the_base(folder, base, ids):
    assert torch.equal(under_policy(base, ids, folder, **CALL).sequences, base.generate(ids, **CALL).sequences)


def test_sampling_streams_and_keywords_arrive(folder, base, ids):
    class Streamer:
        def __init__(self):
            self.tokens = []

        def put(self, value):
            self.tokens.append(value)

        def end(self):
            self.ended = True

    model, texts, streamer = SOLForCausalLM.from_pretrained(folder, base=tiny_base("llama")), [], Streamer()
    options = dict(attention_mask=torch.ones_like(ids[:1]), **SAMPLED, **BUDGET)
    torch.manual_seed(1)
    texts.append(model.generate(input_ids=ids[:1], **options))
    torch.manual_seed(1)
    arguments = dict(custom_generate=str(folder), trust_remote_code=True, streamer=streamer)
    texts.append(base.generate(input_ids=ids[:1], **arguments, **options))
    assert torch.equal(*texts) and streamer.ended and len(streamer.tokens) == 9


def test_the_base_stays_what_it_was(folder, base, ids):
    base.train()
    base.lm_head.requires_grad_(False)
    before = copy.deepcopy(base.generation_config.to_dict())
    flags = [parameter.requires_grad for parameter in base.parameters()]
    with pytest.raises(BudgetError, match="below the smallest level"):
        under_policy(base, ids, folder, **CALL, token_keep=0.01)
    under_policy(base, ids, folder, **CALL, **BUDGET)
    assert [parameter.requires_grad for parameter in base.parameters()] == flags and any(flags) and not all(flags)
    assert all(module.training for module in base.modules())
    assert base.generation_config.to_dict() == before
    assert not [module for module in base.modules() if "forward" in vars(module)]


def test_the_policy_is_loaded_once_and_again_when_it_changes(folder, base, ids, tmp_path, monkeypatch):
    loaded, load = [], SOLForCausalLM.from_pretrained.__func__
    counted = classmethod(lambda cls, *args, **kwargs: loaded.append(args) or load(cls, *args, **kwargs))
    monkeypatch.setattr(SOLForCausalLM, "from_pretrained", counted)
    changing = shutil.copytree(folder, tmp_path / "changing")
    first = [under_policy(base, ids, changing, **CALL, **BUDGET).sequences for _ in range(2)]
    assert torch.equal(*first) and len(loaded) == 1
    base.generation_config.max_new_tokens = 3
    assert under_policy(base, ids, changing, **BUDGET, pad_token_id=0).shape[1] == 23
    change_json(changing / "generation_config.json", max_new_tokens=5)
    assert under_policy(base, ids, changing, **BUDGET, pad_token_id=0).shape[1] == 25 and len(loaded) == 2


def test_a_base_that_is_dropped_is_freed(folder, ids):
    base = tiny_base("llama")
    under_policy(base, ids, folder, **CALL, **BUDGET)
    gone = weakref.ref(base)
    del base
    gc.collect()
    assert gone() is None and len(custom_generate._POLICIES) == 0


def test_what_cannot_work_says_why(folder, base, ids):
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        base.generate(ids, custom_generate=str(folder), trust_remote_code=False, **CALL, **BUDGET)
    with pytest.raises(ValueError, match="has a policy already"):
        under_policy(SOLForCausalLM.from_pretrained(folder, base=base), ids, folder, **CALL, **BUDGET)
    function = base.load_custom_generate(str(folder), trust_remote_code=True)
    with pytest.raises(ValueError, match=r"Call this by `model.generate\(custom_generate=REPOSITORY"):
        function(model=base, inputs=ids, **CALL, **BUDGET)
    with pytest.raises(ValueError, match="made for another base: of GPT2LMHeadModel"):
        under_policy(tiny_base("gpt2"), ids, folder, **CALL, **BUDGET)
