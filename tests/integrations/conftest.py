# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A tiny base with a tokenizer, a policy of it, and lm-eval's adapter over both."""

import runpy

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sol_hf import SOLConfig, SOLForCausalLM
from support.paths import ROOT


@pytest.fixture
def without_environment(monkeypatch):
    """lm-eval asks pip for all versions after every evaluation, which takes seconds."""
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> str:
    """Folder of a tiny Llama with a tokenizer of bytes."""
    folder = tmp_path_factory.mktemp("base")
    example = runpy.run_path(str(ROOT / "examples" / "generate.py"))
    tokenizer = example["tiny_tokenizer"]()
    tokenizer.chat_template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<assistant>"
    tokenizer.save_pretrained(folder)
    example["tiny_base"](tokenizer).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def policy(base, tmp_path_factory) -> str:
    """Folder of a policy of that base."""
    folder = str(tmp_path_factory.mktemp("policy"))
    torch.manual_seed(0)
    config = SOLConfig(
        token_keep=[0.2, 0.5, 1.0], mlp_keep=[0.4, 0.7, 1.0], bits=[4, 8, 16], episode_length=6, policy_hidden_size=32
    )
    SOLForCausalLM.from_base(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sol(base, policy):
    """Factory of the adapter over loaded weights: `sol(controller=..., token_keep=...)`."""
    from sol_hf.integrations.lm_eval_adapter import SOLLM

    def build(**arguments) -> SOLLM:
        model = SOLForCausalLM.from_pretrained(policy, base=AutoModelForCausalLM.from_pretrained(base).double())
        arguments = {"batch_size": 16, **arguments}
        return SOLLM(model, tokenizer=AutoTokenizer.from_pretrained(base), **arguments)

    return build
