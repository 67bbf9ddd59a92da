# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The evaluation script, on a policy of a tiny base."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sol_hf import SOLConfig, SOLForCausalLM
from sol_hf.episodes.text_blocks import load_text, pack_blocks
from sol_hf.evaluation.contest_report import divergence_table
from sol_hf.evaluation.horizons import horizons_table, measure_horizons
from sol_hf.evaluation.policy_evaluation import evaluate_budgets, format_table
from support.paths import DATA, ROOT
from support.policy_folders import change_json


TEXTS = str(DATA / "texts.jsonl.gz")
OPTIONS = ["--context-length", "20", "--blocks", "6", "--episodes", "1", "--page-places", "1", "--soft"]
main = runpy.run_path(str(ROOT / "examples" / "evaluate_policy.py"))["main"]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    """Folder of a tiny Llama with its tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    example = runpy.run_path(str(ROOT / "examples" / "generate.py"))
    tokenizer = example["tiny_tokenizer"]()
    tokenizer.save_pretrained(folder)
    example["tiny_base"](tokenizer).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def policy(base, tmp_path_factory) -> str:
    """Folder of a policy of that base."""
    folder = str(tmp_path_factory.mktemp("policy"))
    torch.manual_seed(0)
    config = SOLConfig(
        token_keep=[0.2, 1.0], mlp_keep=[0.6, 1.0], bits=[8, 16], episode_length=4, policy_hidden_size=32
    )
    SOLForCausalLM.from_base(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder)
    change_json(Path(folder, "config.json"), base_model_name_or_path=base)
    return folder


def test_the_table_is_that_of_evaluate_budgets(base, policy, tmp_path, capsys):
    out = tmp_path / "found.json"
    budgets = ["--budgets", "0.5,0.8,12", "1,1,9"]
    found = main([policy, TEXTS, *OPTIONS[:-1], *budgets, "--dense", "--json", str(out)])
    table = capsys.readouterr().out.strip()
    model, tokenizer = SOLForCausalLM.from_pretrained(policy), AutoTokenizer.from_pretrained(base)
    rows = pack_blocks(load_text(TEXTS), tokenizer, 25, documents=True)[:6]
    blocks, documents = torch.tensor(rows["input_ids"]), torch.tensor(rows["document"])
    budgets = [(0.5, 0.8, 12), (1, 1, 9)]
    expected = evaluate_budgets(model, blocks, 20, budgets, hard=True, dense=True, documents=documents)
    assert found == expected and table == f"{format_table(expected)}\n\n{divergence_table(expected)}"
    written = json.loads(out.read_text())
    assert written["settings"]["blocks"] == 6 and written["settings"]["policy"] == policy
    for row, evaluation in zip(written["evaluations"], expected, strict=True):
        assert row["losses"] == list(evaluation.losses) and row["gain"] == evaluation.gain
        assert row["requested"] == list(evaluation.requested)


def test_horizons_are_compared_on_texts_of_several_episodes(base, policy, tmp_path, capsys):
    compare = runpy.run_path(str(ROOT / "examples" / "compare_horizons.py"))["main"]
    options = ["--blocks", "2", "--context-length", "20", "--episodes", "3", "--page-places", "1"]
    out = tmp_path / "found.json"
    budgets = ["--budgets", "0.5,0.8,12", "--ways", "generation", "episode"]
    found = compare([policy, TEXTS, *options, *budgets, "--json", str(out)])
    assert capsys.readouterr().out.strip() == horizons_table(found)
    model, tokenizer = SOLForCausalLM.from_pretrained(policy), AutoTokenizer.from_pretrained(base)
    rows = pack_blocks(load_text(TEXTS), tokenizer, 33, documents=True)[:2]
    blocks, ways = torch.tensor(rows["input_ids"]), ["generation", "episode"]
    assert found == measure_horizons(model, blocks, 20, [(0.5, 0.8, 12)], ways, rows["document"])
    assert [row["way"] for row in json.loads(out.read_text())] == ways
    (short,) = compare([policy, TEXTS, *options, "--budgets", "0.5,0.8,12", "--steps", "2", "--ways", "exact"])
    assert short.spent["token_keep"] <= 0.5 + 1e-4


def test_another_base_and_the_default_budgets(base, policy):
    found = main([policy, TEXTS, *OPTIONS, "--base", base])
    assert [x.requested for x in found][:3] == [(0.2, 0.6, 8), (0.3, 0.6, 8), (0.5, 0.7, 8)]
    assert {x.dense_losses for x in found} == {None}


def test_blocks_can_be_left_out(policy, capsys):
    everything = main([policy, TEXTS, *OPTIONS])
    later = main([policy, TEXTS, *OPTIONS, "--skip-blocks", "2", "--blocks", "4"])
    assert later[0].dense_losses is None and len(later[0].losses) == 4
    assert later[0].losses == pytest.approx(everything[0].losses[2:], abs=1e-4)
    with pytest.raises(SystemExit):
        main([policy, TEXTS, *OPTIONS, "--skip-blocks", "-1"])
    assert "--skip-blocks" in capsys.readouterr().err


def test_too_little_text_is_refused(policy, tmp_path):
    texts = tmp_path / "texts.jsonl"
    texts.write_text(json.dumps({"text": "Three blocks of twenty-five tokens, and nearly nothing else here on them."}))
    with pytest.raises(ValueError, match="gives 2 blocks of 25 tokens, not 6: give more text, or --blocks 2"):
        main([policy, str(texts), *OPTIONS])


def test_a_budget_has_a_number_per_axis(policy, capsys):
    with pytest.raises(SystemExit):
        main([policy, TEXTS, "--budgets", "half"])
    assert "is not a list of numbers, one per axis" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"one number per axis \(token_keep, mlp_keep, bits\), got \(0.5, 0.7\)"):
        main([policy, TEXTS, *OPTIONS, "--budgets", "0.5,0.7"])


@pytest.mark.slow
def test_two_processes_print_one_table(policy, tmp_path):
    script, launcher = ROOT / "examples" / "evaluate_policy.py", ROOT / "examples" / "accelerate" / "cpu.yaml"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", launcher, script, policy, TEXTS]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    out = subprocess.run(
        [*command, *OPTIONS, "--batch-size", "2", "--json", str(tmp_path / "two.json")],
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        timeout=240,
    ).stdout
    two = json.loads((tmp_path / "two.json").read_text())
    main([policy, TEXTS, *OPTIONS, "--batch-size", "2", "--json", str(tmp_path / "one.json")])
    one = json.loads((tmp_path / "one.json").read_text())
    assert (two.pop("processes"), one.pop("processes")) == (2, 1)
    assert (two["made_with"].pop("processes"), one["made_with"].pop("processes")) == (2, 1)
    assert out.count("| requested | realised |") == 1
    # Threads share a sum in another order than one thread, so that the last digits may differ.
    assert numbers(two) == pytest.approx(numbers(one), rel=1e-3, abs=1e-5)


def numbers(value, path="") -> dict[str, float]:
    """All numbers of a JSON value by their places; times are left out."""
    if isinstance(value, dict):
        return {k: v for key, entry in value.items() for k, v in numbers(entry, f"{path}/{key}").items()}
    if isinstance(value, list):
        return {k: v for place, entry in enumerate(value) for k, v in numbers(entry, f"{path}/{place}").items()}
    return {path: value} if isinstance(value, int | float) and "seconds" not in path else {}
