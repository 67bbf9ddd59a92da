# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The notebook runs from its first cell to its last one, on a tiny model, and says what it shows."""

import json
import runpy
import sys
from types import ModuleType

import pytest
from transformers import AutoModelForCausalLM

from sol_hf import SOLForCausalLM
from support.paths import ROOT


pytestmark = pytest.mark.slow

NOTEBOOK = json.loads((ROOT / "examples" / "tour.ipynb").read_text(encoding="utf-8"))


@pytest.fixture
def tiny(tmp_path):
    """What takes the place of the real model and the shipped policy: folders."""
    made = runpy.run_path(str(ROOT / "examples" / "generate.py"))
    tokenizer = made["tiny_tokenizer"]()
    tokenizer.save_pretrained(tmp_path / "base")
    made["tiny_base"](tokenizer).save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    SOLForCausalLM.from_base(base).save_pretrained(tmp_path / "policy")
    return {
        "fetch_smollm2()": repr(str(tmp_path / "base")),
        '"model_cards/sol-smollm2-135m"': repr(str(tmp_path / "policy")),
    }


def test_the_notebook_runs(tiny, monkeypatch, capsys):
    display = ModuleType("IPython.display")
    display.HTML = str
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    namespace: dict = {}
    for number, cell in enumerate(cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"):
        code = "".join(cell["source"])
        for text, replacement in tiny.items():
            code = code.replace(text, replacement)
        exec(compile(code, f"tour.ipynb, cell {number}", "exec"), namespace)
    printed = capsys.readouterr().out
    assert "same text: True True" in printed
    assert printed.count("nats a token") == 5
    assert "token_keep" in namespace["page"]
