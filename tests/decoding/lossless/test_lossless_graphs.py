# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""With `cuda_graphs=True` the steps of drafts run from captured graphs; on a CPU by the function that is captured."""

import pytest
import torch

from sol_hf import FixedController, SOLForCausalLM
from sol_hf.execution.cuda_graphs import CapturedForward
from sol_hf.kernels.cuda import triton_support
from support.bases import tiny_base
from support.cases import control, left_padded, prompts


pytest.importorskip("triton")

FEW_HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "hidden_size": 16, "intermediate_size": 32}
CALL = dict(max_new_tokens=7, do_sample=False, pad_token_id=0)


@pytest.fixture
def captured(monkeypatch):
    """Lengths of the forwards that ran from a graph."""
    monkeypatch.setattr(triton_support, "DEVICES", ("cuda", "cpu"))
    ran, own = [], CapturedForward.__call__

    def run(self, tokens, *arguments):
        ran.append(tokens.shape[1])
        return own(self, tokens, *arguments)

    monkeypatch.setattr(CapturedForward, "__call__", run)
    return ran


def small_base():
    return tiny_base("llama", num_hidden_layers=1, attn_implementation="sdpa", **FEW_HEADS)


@pytest.mark.slow
def test_drafts_without_a_budget_run_from_graphs(captured):
    model = SOLForCausalLM.from_base(small_base())
    batch = left_padded([prompts(1, length, seed=length)[0] for length in (12, 9)])
    text = model.generate(**batch, lossless=2, cuda_graphs=True, **CALL)
    assert torch.equal(text, model.base.generate(**batch, **CALL)) and captured and set(captured) == {1}


@pytest.mark.slow
def test_drafts_under_a_budget_run_from_graphs(captured):
    model = control(small_base(), bits=[16])
    options = dict(controller=FixedController(), token_keep=0.5, mlp_keep=0.5)
    text = model.generate(prompts(1, 12), lossless=2, cuda_graphs=True, **options, **CALL)
    assert torch.equal(text, model.base.generate(prompts(1, 12), **CALL)) and captured and set(captured) == {1}
