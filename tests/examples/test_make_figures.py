# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The command that draws figures, on a sweep of a tiny base and on the base itself."""

import importlib
import json
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sol_hf import SOLConfig, SOLForCausalLM, load_text, pack_blocks
from sol_hf.cli import figures
from sol_hf.cli.main import build_parser
from sol_hf.evaluation.sweep.sweep import Sweep, SweepConfig
from sol_hf.evaluation.sweep.table import SweepError
from support.paths import DATA, ROOT
from support.policy_folders import change_json


TEXTS = str(DATA / "texts.jsonl.gz")


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    yield importlib.import_module("make_figures")
    sys.modules.pop("make_figures", None)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """Folders of a tiny Llama with its tokenizer, a policy of it, and a sweep."""
    base, policy, sweep = (str(tmp_path_factory.mktemp(name)) for name in ("base", "policy", "sweep"))
    example = runpy.run_path(str(ROOT / "examples" / "generate.py"))
    tokenizer = example["tiny_tokenizer"]()
    tokenizer.save_pretrained(base)
    example["tiny_base"](tokenizer).save_pretrained(base)
    torch.manual_seed(0)
    config = SOLConfig(
        token_keep=[0.2, 1.0], mlp_keep=[0.6, 1.0], bits=[4, 16], episode_length=4, policy_hidden_size=32
    )
    model = SOLForCausalLM.from_base(AutoModelForCausalLM.from_pretrained(base), config)
    model.save_pretrained(policy)
    change_json(Path(policy, "config.json"), base_model_name_or_path=base)  # as in files of earlier versions
    blocks = torch.tensor(pack_blocks(load_text(TEXTS), AutoTokenizer.from_pretrained(base), 17)[:3]["input_ids"])
    Sweep(
        model, blocks, SweepConfig(("policy", "fixed", "random:3"), ((0.5, 0.8, 10), (0.9, 0.9, 8)), 12), sweep
    ).run()
    return {"base": base, "policy": policy, "sweep": sweep}


def names(files: list[Path]) -> list[str]:
    assert all(path.stat().st_size > 1000 for path in files)
    return [path.name for path in files]


def pictures(*figures: str) -> list[str]:
    return [f"{figure}.{suffix}" for figure in figures for suffix in ("png", "svg")]


def test_a_sweep_is_drawn_from_its_folder(script, folders, tmp_path, capsys):
    files = script.main([folders["sweep"], "--out", str(tmp_path / "pictures")])
    assert names(files) == pictures("pareto", "realised", "random_search")
    assert capsys.readouterr().out.split() == [str(path) for path in files]


def test_a_text_is_coloured_by_the_policy_and_by_the_fixed_schedule(script, folders, tmp_path):
    text = tmp_path / "tide.txt"
    text.write_text("Twice a day the sea comes up the beach & goes back again.\n")
    arguments = ["--policy", folders["policy"], "--action-map", str(text), "--budget", "0.7,0.9,12"]
    files = script.main([*arguments, "--out", str(tmp_path)])
    assert names(files) == [*pictures("action_map"), "action_map.html"]
    page = (tmp_path / "action_map.html").read_text(encoding="utf-8")
    shown = page.split('<p class="text">')[1].split("</p>")[0]
    assert page.count('class="t"') > 20 and "policy, spent" in page and "&amp;" in shown
    script.main([*arguments, "--controller", "fixed", "--out", str(tmp_path)])
    assert "fixed, spent" in (tmp_path / "action_map.html").read_text(encoding="utf-8")


def test_pollution_is_measured_and_drawn(script, folders, tmp_path, capsys):
    arguments = ["--policy", folders["policy"], "--base", folders["base"], "--pollution", TEXTS, "--blocks", "3"]
    arguments += ["--context-length", "12", "--steps", "8", "--disturbed", "1", "2", "--out", str(tmp_path)]
    assert names(script.main(arguments)) == [*pictures("kv_pollution"), "kv_pollution.json"]
    rows = json.loads((tmp_path / "kv_pollution.json").read_text())
    assert [(row["kv_refresh"], row["step"]) for row in rows] == [(r, s) for r in (False, True) for s in range(8)]
    assert {(row["token_keep"], row["mlp_keep"], row["bits"]) for row in rows} == {(0.2, 0.6, 4.0)}
    assert rows[1]["divergence"] > rows[3]["divergence"] > 0 == rows[0]["divergence"]
    assert rows[4]["divergence"] > 10 * rows[12]["divergence"]
    assert "without refresh: KL" in capsys.readouterr().out
    script.main([*arguments, "--actions", "1,1,4", "1,0.6,16"])
    rows = json.loads((tmp_path / "kv_pollution.json").read_text())
    assert {(row["mlp_keep"], row["bits"]) for row in rows} == {(1.0, 4.0), (0.6, 16.0)} and len(rows) == 32


def test_the_shipped_policy_brings_its_base(script, monkeypatch):
    monkeypatch.setattr(script.figures, "main", script.figures.parse)
    options = script.main(["--out", "x", "--action-map", "text.txt"])
    assert Path(options.policy).samefile(ROOT / "model_cards" / "sol-smollm2-135m") and options.base == "smollm2-135m"
    assert script.main(["--out", "x", "--action-map", "text.txt", "--policy", "mine"]).base is None


def test_nothing_to_draw_is_an_error(script, capsys):
    with pytest.raises(SystemExit):
        script.main(["--out", "x"])
    assert "nothing to draw: give the folder of a sweep" in capsys.readouterr().err


def test_a_folder_without_a_finished_sweep_is_refused(script, tmp_path):
    with pytest.raises(SweepError, match="sweep.parquet is not there"):
        script.main([str(tmp_path), "--out", str(tmp_path / "pictures")])
    assert not (tmp_path / "pictures").exists()


def test_the_text_of_the_documentation_is_there(script):
    assert len((ROOT / "examples" / "texts" / "tide.txt").read_text(encoding="utf-8").split()) > 150


def commands_of_make_figures(texts: str) -> list[str]:
    """What `make figures` would run, without running it."""
    command = ["make", "--dry-run", "--always-make", "figures", f"TEXTS={texts}"]
    printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return printed.replace("\\\n", " ").splitlines()


def test_make_figures_gives_commands_that_can_be_run(script):
    """`make figures` names every figure of the paper index, and its commands are read without an error."""
    lines = [shlex.split(line) for line in commands_of_make_figures("texts.jsonl.gz")]
    sweeps = [line[2:] for line in lines if line[0].endswith("/sol-hf") and line[1] == "pareto"]
    (drawn,) = [line[2:] for line in lines if len(line) > 1 and line[1] == "examples/make_figures.py"]
    assert len(sweeps) == 3 and drawn[0] == "runs/pareto"
    written = set()
    for arguments in sweeps:
        options = build_parser().parse_args(["pareto", *arguments])
        assert (ROOT / options.policy / "config.json").is_file() and options.texts == "texts.jsonl.gz"
        written.add(str(options.out))
    options = figures.parse([*drawn, "--policy", "any"])
    assert {drawn[0], *(str(folder) for _, folder in options.bytes_front)} == written
    assert options.action_map.is_file() or (ROOT / options.action_map).is_file()
    assert options.texts == "texts.jsonl.gz" and str(options.out) == "docs/pictures"


def test_make_figures_without_texts_says_what_to_give():
    (check,) = [line for line in commands_of_make_figures("") if line.startswith("test -n ")]
    found = subprocess.run(["sh", "-c", check], capture_output=True, text=True)
    assert found.returncode == 2 and "make figures TEXTS=texts.jsonl.gz" in found.stderr
