# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The command `sol-hf`, on a policy of a tiny base."""

import json
import os
import runpy
import shutil
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from sol_hf import SOLConfig, SOLForCausalLM
from sol_hf.cli import main as cli
from sol_hf.controllers.registry import CONTROLLERS
from sol_hf.evaluation.sweep.table import read_table
from support.paths import DATA, ROOT
from support.policy_folders import change_json
from support.sudden_death import kill


TEXTS = str(DATA / "texts.jsonl.gz")
OPTIONS = ["--data", TEXTS, "--context-length", "20", "--blocks", "6", "--episodes", "2", "--page-places", "2"]
BUDGETS = ["--budgets", "0.5,0.8,12", "0.3,0.7,9", "0.8,0.9,14"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Folder of a policy of a tiny base, with its base beside it."""
    folder = tmp_path_factory.mktemp("policies")
    example = runpy.run_path(str(ROOT / "examples" / "generate.py"))
    tokenizer = example["tiny_tokenizer"]()
    tokenizer.save_pretrained(folder / "base")
    example["tiny_base"](tokenizer).save_pretrained(folder / "base")
    torch.manual_seed(0)
    config = SOLConfig(
        token_keep=[0.2, 0.5, 1.0],
        mlp_keep=[0.6, 0.8, 1.0],
        bits=[8, 12, 16],
        episode_length=4,
        policy_hidden_size=32,
        budget_prior=True,
    )
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    SOLForCausalLM.from_base(base, config).save_pretrained(folder / "policy")
    change_json(folder / "policy" / "config.json", base_model_name_or_path=str(folder / "base"))
    return folder / "policy"


@pytest.fixture
def policy(trained, tmp_path) -> str:
    """A copy that a test may change."""
    return str(shutil.copytree(trained, tmp_path / "policy"))


def rows(folder: Path) -> list[dict]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in read_table(folder)]


def test_pareto_sweeps_sums_up_and_saves_the_front(policy, tmp_path, capsys):
    out = tmp_path / "out"
    controllers = ["--controllers", "policy,fixed,random:3,oracle"]
    assert cli.main(["pareto", policy, *OPTIONS, *BUDGETS, *controllers, "--out", str(out), "--save"]) == 0
    printed = capsys.readouterr().out
    summary = json.loads((out / "summary.json").read_text())
    assert list(summary["controllers"]) == ["policy", "fixed", "random:3", "oracle"]
    assert "| `random:3` |" in printed and "calibration table of" in printed
    model = SOLForCausalLM.from_pretrained(policy)
    front = summary["controllers"]["policy"]["front"]
    *reduced, dense = model.config.calibration
    assert reduced == front and front
    assert dense["net_keep"] == 1 and dense["log_perplexity"] == summary["dense"]["log_perplexity"]
    ids = torch.arange(3, 20)[None]
    options = dict(max_new_tokens=4, return_dict_in_generate=True, do_sample=False)
    point = front[0]
    dial = model.generate(ids, compute=point["net_keep"], **options)
    asked = {axis: point[axis] for axis in ("token_keep", "mlp_keep", "bits")}
    assert torch.equal(dial.actions, model.generate(ids, **asked, **options).actions)


def test_the_front_can_be_saved_in_bytes_or_says_why_not(policy, tmp_path, capsys):
    command = ["pareto", policy, *OPTIONS, *BUDGETS, "--controllers", "policy", "--out", str(tmp_path / "out")]
    assert cli.main([*command, "--save", "--unit", "bytes"]) == 1  # this policy is larger than its base
    assert "No budget of this sweep costs less than a dense step in `bytes`" in capsys.readouterr().err
    assert SOLForCausalLM.from_pretrained(policy).config.calibration is None
    assert cli.main([*command, "--save", "--unit", "net_keep"]) == 0  # of the same sweep
    assert "generate(compute=...) is a net keep rate" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main([*command, "--save", "--unit", "flops"])
    assert cli.main([*command, "--unit", "bytes"]) == 1
    assert "give --save, or leave out --unit" in capsys.readouterr().err


def test_steps_are_computed_as_the_command_says(policy, tmp_path, capsys):
    command = ["pareto", policy, *OPTIONS, *BUDGETS, "--controllers", "fixed", "--bits-backend"]
    assert cli.main([*command, "nested", "--out", str(tmp_path / "nested")]) == 0
    assert cli.main([*command, "fake", "--out", str(tmp_path / "fake")]) == 0
    nested, fake = (rows(tmp_path / name)[1] for name in ("nested", "fake"))
    assert nested["log_perplexity"] != fake["log_perplexity"]
    assert nested["bytes_per_token"] < fake["bytes_per_token"]
    capsys.readouterr()
    assert cli.main([*command, "fake", "--out", str(tmp_path / "nested")]) == 1
    assert "holds a sweep with another bits_backend" in capsys.readouterr().err
    assert cli.main([*command, "nestd", "--out", str(tmp_path / "other")]) == 1
    assert "`bits_backend` must be one of fake, int8, nested" in capsys.readouterr().err


def test_the_default_grid_is_brought_into_the_action_space(policy, tmp_path):
    assert cli.main(["pareto", policy, *OPTIONS, "--controllers", "fixed", "--out", str(tmp_path / "out")]) == 0
    found = {(row["token_keep"], row["mlp_keep"], row["bits"]) for row in rows(tmp_path / "out")}
    assert (0.2, 0.6, 8.0) in found and len(found) == 9 + 1  # that of the dense row


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--controllers", "polcy"], "Did you mean 'policy'"),
        (["--controllers", "fixed", "--budgets", "0.1,0.7,8"], "below the smallest level"),
        (["--controllers", "fixed", "--blocks", "100000"], "give more text, or --blocks"),
        (["--controllers", "fixed", "--save"], "name `policy` among the controllers"),
        (["--controllers", "fixed", "--data", "absent.jsonl"], "absent.jsonl"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(policy, tmp_path, capsys, options, message):
    assert cli.main(["pareto", policy, *OPTIONS, "--out", str(tmp_path / "out"), *options]) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_the_folder_of_another_sweep_is_refused(policy, tmp_path, capsys):
    command = ["pareto", policy, *OPTIONS, *BUDGETS, "--controllers", "fixed", "--out", str(tmp_path / "out")]
    assert cli.main(command) == 0
    assert cli.main([*command, "--soft"]) == 1
    assert "holds a sweep with another hard" in capsys.readouterr().err


def test_a_budget_is_numbers(policy, tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli.main(["pareto", policy, *OPTIONS, "--out", str(tmp_path), "--budgets", "a,b,c"])
    assert "'a,b,c' is not a list of numbers, one per axis of the policy" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--blocks", "0"], "argument --blocks: must be at least 1, got 0"),
        (["--blocks", "-3"], "argument --blocks: must be at least 1, got -3"),
        (["--skip-blocks", "-1"], "argument --skip-blocks: must be at least 0"),
        (["--batch-size", "x"], "argument --batch-size: 'x' is not a whole number"),
        (["--context-length", "0"], "argument --context-length: must be at least 1"),
        (["--schedules-at-once", "0"], "argument --schedules-at-once: must be at least 1"),
        (["--dtype", "float33"], "argument --dtype: invalid choice: 'float33'"),
    ],
)
def test_wrong_numbers_are_refused_before_anything_is_loaded(tmp_path, capsys, options, message):
    with pytest.raises(SystemExit):
        cli.main(["pareto", "no-policy", "--data", "none.txt", "--out", str(tmp_path), *options])
    assert message in capsys.readouterr().err


def test_a_budget_has_a_number_per_axis(policy, tmp_path, capsys):
    assert cli.main(["pareto", policy, *OPTIONS, "--out", str(tmp_path / "out"), "--budgets", "0.5,0.7"]) == 1
    assert "one number per axis (token_keep, mlp_keep, bits), got (0.5, 0.7)" in capsys.readouterr().err


PLUGIN = """
from sol_hf import Controller
from sol_hf.controllers.registry import register_controller

class Cheapest(Controller):
    def __call__(self, observation):
        return -observation.action_space.ratios.mean(dim=-1).expand(observation.rows, -1)

register_controller("cheapest", lambda model, number: Cheapest())
"""


def test_a_controller_of_an_imported_module_can_be_swept(policy, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_controllers.py").write_text(PLUGIN)
    command = ["pareto", policy, *OPTIONS, "--out", "out", *BUDGETS, "--controllers", "fixed,cheapest"]
    assert cli.main(command) == 1
    assert "Unknown controller 'cheapest'" in capsys.readouterr().err
    try:
        assert cli.main(["--import", "my_controllers", *command]) == 0
        found = [row for row in rows(tmp_path / "out") if row["controller"] == "cheapest"]
        assert [row["realised_token_keep"] for row in found] == pytest.approx([0.2] * 3)
        assert "| `cheapest` |" in capsys.readouterr().out
    finally:
        CONTROLLERS.unregister("cheapest")
        del sys.modules["my_controllers"]


def test_a_module_that_is_not_there_is_named(capsys):
    assert cli.main(["--import", "no_such_module", "pareto"]) == 1
    assert "--import no_such_module: No module named 'no_such_module'" in capsys.readouterr().err


def test_lm_eval_gets_the_rest_of_the_line(monkeypatch):
    given = []
    adapter = types.SimpleNamespace(main=lambda arguments: given.extend(arguments))
    monkeypatch.setitem(sys.modules, "sol_hf.integrations.lm_eval_adapter", adapter)
    assert cli.main(["lm-eval", "--tasks", "x", "--help"]) == 0
    assert given == ["--tasks", "x", "--help"]
    assert cli.main(["--import", "json", "lm-eval", "--limit", "2"]) == 0
    assert given[3:] == ["--limit", "2"]


def test_the_help_names_the_commands(capsys):
    assert cli.main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("pareto", "lm-eval", "chat", "serve"))


def launched(policy: str, out: Path, processes: int) -> subprocess.Popen:
    """A sweep in `processes` processes."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    controllers = ["--controllers", "policy,fixed,random:40,entropy,drift,oracle:1"]
    command = [
        *launch,
        "-m",
        "sol_hf.cli",
        "pareto",
        policy,
        *OPTIONS,
        *BUDGETS,
        *controllers,
        "--batch-size",
        "2",
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CI": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*command, "--out", str(out)], env=environment)


def test_a_base_that_is_not_there(trained, tmp_path, capsys):
    missing = str(tmp_path / "no" / "base")
    arguments = ["pareto", str(trained), *OPTIONS, *BUDGETS, "--out", str(tmp_path / "out")]
    assert cli.main([*arguments, "--base", missing]) == 1
    assert f"--base {missing}: there is no such folder" in capsys.readouterr().err


@pytest.mark.slow
def test_killed_sweeps_and_two_processes_give_one_table(trained, tmp_path):
    policy = str(trained)
    assert launched(policy, tmp_path / "one", 1).wait(timeout=240) == 0
    expected = rows(tmp_path / "one")
    assert len(expected) == 1 + 3 * 6
    for processes, part in ((1, "policy-*"), (2, "random-40-0-00000*")):
        out = tmp_path / f"killed-{processes}"
        run = launched(policy, out, processes)
        while run.poll() is None and not list(out.glob(f"parts/{part}.safetensors")):
            time.sleep(0.02)
        assert run.poll() is None, "it ended before it could be killed"
        kill(run)
        assert not (out / "sweep.parquet").exists()
        assert launched(policy, out, processes).wait(timeout=240) == 0
        assert rows(out) == expected
