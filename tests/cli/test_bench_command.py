# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""`sol-hf bench` on a tiny base, and on policies of it."""

import json
import runpy
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from sol_hf import SOLConfig, SOLForCausalLM
from sol_hf.cli import main as cli
from support.paths import DATA, ROOT
from support.policy_folders import change_json


QUICK = ["--contexts", "20", "--steps", "4", "--rounds", "1", "--blocks", "2"]
TABLE = [
    dict(net_keep=0.55, token_keep=0.5, mlp_keep=0.6, bits=8.0, log_perplexity=3.0),
    dict(net_keep=1.0, token_keep=1.0, mlp_keep=1.0, bits=16.0, log_perplexity=2.0),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """A folder with a tiny `base`, and a `policy` on it whose config has a calibration."""
    folder = tmp_path_factory.mktemp("bench")
    example = runpy.run_path(str(ROOT / "examples" / "generate.py"))
    tokenizer = example["tiny_tokenizer"]()
    tokenizer.save_pretrained(folder / "base")
    example["tiny_base"](tokenizer).save_pretrained(folder / "base")
    torch.manual_seed(0)
    levels = dict(token_keep=[0.2, 0.5, 1.0], mlp_keep=[0.6, 1.0], bits=[8, 16], episode_length=4)
    config = SOLConfig(**levels, policy_hidden_size=32, budget_prior=True, calibration=TABLE)
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    SOLForCausalLM.from_base(base, config).save_pretrained(folder / "policy")
    change_json(folder / "policy" / "config.json", base_model_name_or_path=str(folder / "base"))
    return folder


def bench(capsys, *arguments) -> str:
    assert cli.main(["bench", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_a_base_is_compared_with_itself_on_our_cache_and_with_settings(folders, tmp_path, capsys):
    out = tmp_path / "bench.json"
    printed = bench(capsys, folders / "base", *QUICK, "--rows", "1", "2", "--json", out)
    lines = printed.splitlines()
    assert all(len(line) <= 100 for line in lines)
    assert lines[0].startswith("base: float32") and "4 steps, 1 rounds" in lines[0]
    begin = lines.index("context 20, 1 row")
    names = ["transformers", "dense, ours", "lossless", "8 bits", "8 bits, keys .2", "6 bits, keys .2"]
    assert all(line.startswith(name) for line, name in zip(lines[begin + 2 :], names, strict=False))
    assert lines[begin + 8].startswith("fastest here: ") and "context 20, 2 rows" in lines
    found = json.loads(out.read_text())
    assert [case["rows"] for case in found["cases"]] == [1, 2] and found["refused"] == {}
    one, two = found["cases"]
    assert one["speeds"][1]["same_tokens"] == 1 and one["speeds"][0]["speed_up"] == 1
    assert one["bytes_share"]["base"] == 1 and one["bytes_share"]["6 bits, keys .2"] < one["bytes_share"]["8 bits"] < 1
    same = {"base", "dense, ours", "lossless"}
    assert two["bytes_share"] == {} and set(one["over_dense"]) == set(found["qualities"]) | same
    assert 0 < found["qualities"]["8 bits"]["divergence"][0] < found["qualities"]["6 bits, keys .2"]["divergence"][0]


def test_a_policy_runs_at_numbers_of_its_calibration(folders, capsys):
    printed = bench(capsys, folders / "policy", *QUICK)
    rows = {line[:16].strip(): line.split() for line in printed.splitlines()}
    assert {"transformers", "dense, ours", "lossless", "compute 0.8", "compute 0.6"} <= set(rows)
    assert "compute 0.4" not in rows  # its calibration begins above
    assert rows["compute 0.8"][-2] == "+0.44*" and "*: from the calibration of the policy." in printed
    printed = bench(capsys, folders / "policy", *QUICK, "--compute", "0.9")
    assert "compute 0.9" in printed and "compute 0.8" not in printed


def test_a_policy_without_a_calibration_is_left_out_for_settings(folders, tmp_path, capsys):
    policy = shutil.copytree(folders / "policy", tmp_path / "policy")
    change_json(policy / "config.json", calibration=None)
    printed = bench(capsys, policy, *QUICK, "--base", folders / "base", "--blocks", "0")
    assert "8 bits, keys .2" in printed and "KL(dense" not in printed


def test_a_stored_budget_enters_no_dense_line(folders, tmp_path, capsys):
    policy = shutil.copytree(folders / "policy", tmp_path / "policy")
    change_json(policy / "generation_config.json", compute=0.6, do_sample=True)
    out = tmp_path / "bench.json"
    bench(capsys, policy, *QUICK, "--blocks", "0", "--json", out)
    speeds = json.loads(out.read_text())["cases"][0]["speeds"]
    assert speeds[0]["realised"] is None and speeds[1]["realised"] == [1, 1, 16] and speeds[1]["same_tokens"] == 1


def test_texts_of_the_user_are_read(folders, capsys):
    printed = bench(capsys, folders / "base", *QUICK, "--data", DATA / "texts.jsonl.gz")
    assert "texts.jsonl.gz" in printed.replace("\n", "")


def test_threads_and_clock_are_said_and_threads_are_set(folders, capsys):
    before = torch.get_num_threads()
    try:
        printed = bench(capsys, folders / "base", *QUICK, "--blocks", "0", "--threads", "1", "--clock", "cpu")
        assert torch.get_num_threads() == 1 and "1 threads" in printed and "processor time" in printed
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--contexts", "100000"], "a prompt has at most"),
        (["--base", "x"], "is a base, no policy: leave out --base"),
        (["--compute", "0.5"], "needs a policy with a calibration"),
        (["--blocks", "100000"], "fewer --blocks"),
        (["--data", "absent.jsonl"], "absent.jsonl"),
    ],
)
def test_what_cannot_be_measured_is_said_in_a_line(folders, capsys, arguments, message):
    assert cli.main(["bench", str(folders / "base"), *QUICK, *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_a_number_that_the_calibration_has_not_is_refused(folders, capsys):
    assert cli.main(["bench", str(folders / "policy"), *QUICK, "--compute", "0.1"]) == 1
    assert "`compute` must lie in" in capsys.readouterr().err


def test_a_model_that_is_not_there(capsys):
    assert cli.main(["bench", "/no/such/folder"]) == 1
    assert "/no/such/folder: there is no such folder" in capsys.readouterr().err
