# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Examples with `--tiny` run without a download, and their table names all of them."""

import importlib.util
from types import ModuleType

import pytest
import torch

from sol_hf import SOLForCausalLM, load_text
from sol_hf.integrations.tiny_llama import tiny_base, tiny_tokenizer
from support.paths import EXAMPLES


PARTS = (
    "demo_notes.py",
    "demo_render.py",
    "demo_run.py",
    "demo_ways.py",
    "grpo_arms.py",
    "recipe_runs.py",
    "timed_snapshots.py",
)
"""Files that other scripts import."""
GIVEN = {"evaluate_lm_eval": [], "other_texts": ["chat", "--out", "nowhere"]}
"""Arguments without those that an example needs, where they are not `--out` alone."""
RUN = dict(token_keep=0.6, mlp_keep=0.8, bits=12, max_new_tokens=6, do_sample=False)


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_names_every_example():
    table = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for path in EXAMPLES.glob("*.py"):
        assert path.name in PARTS or f"| [{path.name}]({path.name}) |" in table, path.name


@pytest.mark.slow
def test_an_adapter_is_trained_beside_the_policy(tmp_path):
    trainer = script("train_lora").main(["--tiny", "--out", str(tmp_path / "adapter")])
    assert trainer.state.global_step == 2
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()
    again = SOLForCausalLM.from_pretrained(tmp_path / "adapter", base=tiny_base(tiny_tokenizer()))
    assert any("lora" in name for name in again.policy.state_dict())
    assert again.generate(torch.arange(10, 30)[None], **RUN).shape == (1, 26)


@pytest.mark.slow
def test_a_policy_by_grpo(tmp_path, capsys):
    trainer = script("train_grpo").run_tiny(["--output_dir", str(tmp_path / "policy"), "--disable_tqdm", "true"])
    assert trainer.state.global_step == 2
    again = SOLForCausalLM.from_pretrained(tmp_path / "policy", base=tiny_base(tiny_tokenizer()))
    assert again.generate(torch.arange(10, 30)[None], **RUN).shape == (1, 26)
    assert "Gain over the fixed schedule at equal cost: " in capsys.readouterr().out


@pytest.mark.slow
def test_what_a_policy_is_worth(capsys):
    evaluations = script("evaluate_policy").run_tiny(["--blocks", "4"])
    assert [found.requested for found in evaluations] == [(0.3, 0.6, 12), (0.5, 0.7, 12)]
    assert {len(found.losses) for found in evaluations} == {4}
    assert "4 texts of 4 documents" in capsys.readouterr().out


def test_conversations_have_four_answers(tmp_path):
    out = tmp_path / "chat.jsonl"
    texts = script("other_texts").main(["chat", "--tiny", "--out", str(out)])
    assert list(load_text(out)["text"]) == texts and len(set(texts)) == 2
    assert {text.count("assistant: ") for text in texts} == {4}
    assert "What is bread?" in texts[0] and "What is the moon?" in texts[1]


def test_code_is_long_enough_for_a_block(tmp_path):
    texts = script("other_texts").main(["code", "--documents", "5", "--out", str(tmp_path / "code.jsonl")])
    assert len(set(texts)) == 5 and min(map(len, texts)) > 10_000 and all("def " in text for text in texts)
    assert list(load_text(tmp_path / "code.jsonl")["text"]) == texts


@pytest.mark.slow
def test_a_policy_from_measured_costs(tmp_path):
    fitted = script("distill").main(["--tiny", "--out", str(tmp_path / "policy")])
    assert (tmp_path / "policy-measured" / "measured-00000.safetensors").exists()
    again = SOLForCausalLM.from_pretrained(tmp_path / "policy", base=tiny_base(tiny_tokenizer()))
    prompt = torch.arange(10, 30)[None]
    assert torch.equal(again.generate(prompt, **RUN), fitted.generate(prompt, **RUN))
    assert "CounterfactualWarmup" in fitted.training_recipe


@pytest.mark.slow
def test_a_task_of_lm_eval(capsys):
    results = script("evaluate_lm_eval").main(["--tiny"])
    assert results["n-samples"]["tiny_questions"]["effective"] == 3
    spent = results["config"]["sol"]["realised"]["tiny_questions"]
    assert spent["token_keep"] < 1 and spent["bits"] < 16
    assert "tiny_questions" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train_lora", "distill", "evaluate_lm_eval", "other_texts"])
def test_what_is_missing_is_named(name, capsys):
    pytest.importorskip({"train_lora": "trl", "evaluate_lm_eval": "lm_eval"}.get(name, "torch"))
    with pytest.raises(SystemExit):
        script(name).main(GIVEN.get(name, ["--out", "nowhere"]))
    assert "or --tiny" in capsys.readouterr().err
