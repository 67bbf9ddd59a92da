# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The comparison with llama.cpp, which a stand-in replaces: it counts what it is asked to do."""

import importlib
import json
import sys

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from support.paths import EXAMPLES
from support.policy_folders import tiny_tokenizer


STAND_IN = """
import ctypes, shutil
import numpy as np

class Parameters(ctypes.Structure):
    _fields_ = [("ftype", ctypes.c_int), ("allow_requantize", ctypes.c_bool)]

def llama_model_quantize_default_params():
    return Parameters()

def llama_model_quantize(source, target, parameters):
    assert parameters._obj.ftype in (0, 32, 7) and parameters._obj.allow_requantize
    shutil.copy(source, target)
    return 0

class Llama:
    def __init__(self, path, n_ctx, **settings):
        assert open(path).read() == "weights" and settings["n_threads"] == 1
        self.n_ctx, self.n_tokens, self.ctx = n_ctx, 0, self
        self.logits = (ctypes.c_float * 99)()

    def n_vocab(self):
        return 99

    def eval(self, tokens):
        self.n_tokens += len(tokens)
        assert self.n_tokens <= self.n_ctx
        self.logits[self.n_tokens % 99] = 1 + self.n_tokens

def llama_get_logits_ith(context, place):
    return context.logits
"""


@pytest.fixture
def script(monkeypatch, tmp_path):
    """The script, with a tiny base and the stand-in."""
    monkeypatch.syspath_prepend(EXAMPLES / "benchmarks")
    module = importlib.import_module("compare_llama_cpp")
    torch.manual_seed(0)
    sizes = dict(hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=99)
    LlamaForCausalLM(LlamaConfig(**sizes, eos_token_id=None, pad_token_id=0)).save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    (tmp_path / "llama_cpp.py").write_text(STAND_IN)
    (tmp_path / "model.gguf").write_text("weights")
    monkeypatch.setattr(module, "fetch_smollm2", lambda: tmp_path / "base")
    monkeypatch.setattr(module, "fetch_gguf", lambda folder: tmp_path / "model.gguf")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return module


def test_all_are_timed_in_turn_after_the_same_text(script, tmp_path, capsys):
    out, before = tmp_path / "out.json", torch.get_num_threads()
    call = ["--llama-python", sys.executable, "--contexts", "12", "20", "--steps", "3", "--rounds", "2"]
    try:
        assert script.main([*call, "--threads", "1", "--json", str(out)]) == 0
    finally:
        torch.set_num_threads(before)
    printed = capsys.readouterr().out
    found = json.loads(out.read_text())
    names = [*(f"llama.cpp {kind}" for kind in ("F32", "BF16", "Q8_0")), "base", "dense, ours"]
    assert list(found["results"]) == ["12", "20"]
    for result in found["results"].values():
        assert list(result)[:5] == names and all(
            len(each["ms"]) == 2 and min(each["ms"]) > 0 for each in result.values()
        )
    assert "context 20, 1 row, float32, 1 threads" in printed and printed.count("\ntransformers ") == 2
    assert max(map(len, printed.splitlines())) <= 100
