# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The commands of `sol-hf` on a tiny policy: the examples of their helps, a chat, and errors in a line."""

import importlib
import io
import json
import os
import pty
import re
import runpy
import select
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from sol_hf import SOLConfig, SOLForCausalLM
from sol_hf.cli import main as cli
from sol_hf.cli.app import OWN, WITH_PARSER
from sol_hf.integrations.lm_eval_help import HELP
from sol_hf.version import __version__
from support.paths import DATA, ROOT
from support.policy_folders import change_json


TEMPLATE = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
TABLE = [
    dict(net_keep=0.55, token_keep=0.5, mlp_keep=0.6, bits=8.0, log_perplexity=3.0),
    dict(net_keep=1.0, token_keep=1.0, mlp_keep=1.0, bits=16.0, log_perplexity=2.0),
]
SLOW = {"bench", "convert", "demo", "evaluate", "figures", "lm-eval", "pareto", "train"}
"""Commands whose examples take seconds."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """A folder with a tiny `base`, a `policy` on it with a calibration, and texts."""
    folder = tmp_path_factory.mktemp("commands")
    example = runpy.run_path(str(ROOT / "examples" / "generate.py"))
    tokenizer = example["tiny_tokenizer"]()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder / "base")
    example["tiny_base"](tokenizer).save_pretrained(folder / "base")
    torch.manual_seed(0)
    levels = dict(token_keep=[0.2, 0.5, 1.0], mlp_keep=[0.6, 1.0], bits=[8, 16], episode_length=4)
    config = SOLConfig(**levels, policy_hidden_size=32, budget_prior=True, calibration=TABLE)
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    SOLForCausalLM.from_base(base, config).save_pretrained(folder / "policy")
    change_json(folder / "policy" / "config.json", base_model_name_or_path=str(folder / "base"))
    return folder


def help_of(command: str, capsys) -> str:
    """The help, with its line breaks undone."""
    if command == "lm-eval":
        return " ".join(HELP.split())
    if command == "train":
        return " ".join((importlib.import_module("sol_hf.cli.train").__doc__ or "").split())
    try:
        cli.main([command, "--help"])
    except SystemExit as stopped:  # of an argparse parser
        assert not stopped.code
    return " ".join(capsys.readouterr().out.split())


def write_checkpoint(folder: Path) -> None:
    """A checkpoint as published, its settings, and its base."""
    golden = DATA / "golden"
    meta = json.loads((golden / "meta.json").read_text())
    weights = load_file(golden / "policy.safetensors")
    torch.save({"policy_state_dict": weights, "cfg": meta["policy"]}, folder / "policy_latest.pt")
    settings = {**meta["axes"], "page_size": 4, "episode_len": 12}
    (folder / "config.yml").write_text(json.dumps({"env": settings}))
    LlamaForCausalLM(LlamaConfig(**meta["lm"])).save_pretrained(folder / "golden")


def example_of(text: str) -> str:
    (found,) = re.findall(r"Example: (.*?)(?= Arguments:| Options:| All other options| positional arguments|$)", text)
    return found


@pytest.mark.parametrize(
    "command",
    [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in (*OWN, *WITH_PARSER)],
)
def test_the_example_of_a_help_runs(folders, tmp_path, monkeypatch, capsys, command):
    line = example_of(help_of(command, capsys))
    monkeypatch.chdir(tmp_path)
    texts = "\n".join(json.dumps({"text": "The tide comes in, and the tide goes out again. " * 4}) for _ in range(40))
    for name in ("texts.jsonl", "texts.txt"):
        (tmp_path / name).write_text(texts if name.endswith("l") else "The tide comes in, and it goes out again. " * 3)
    if command == "convert":
        write_checkpoint(tmp_path)
        line = line.replace("smollm2-135m", str(tmp_path / "golden"))
    for name, place in (("smollm2-135m", "base"), ("my-policy", "policy")):
        line = line.replace(name, str(folders / place))
    line = line.replace("arc_easy", f"tiny_choices --include_path {DATA / 'lm_eval_tasks'}")
    typed, _, line = line.rpartition(" | ")
    if typed:
        words = shlex.split(typed)
        assert words.pop(0) == "echo"
        monkeypatch.setattr(sys, "stdin", io.StringIO(" ".join(words) + "\n"))
    name, *arguments = shlex.split(line)
    assert name == "sol-hf" and arguments[0] == command
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out.strip() or (tmp_path / "policy" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("line", "status", "message"),
    [
        ("", 2, "Missing command"),
        ("nothing", 2, "No such command 'nothing'"),
        ("chat", 2, "Missing argument 'model'"),
        ("chat x --bits many", 2, "--bits"),
        ("generate x y --threads 0", 2, "--threads"),
        ("serve /absent/folder/x", 1, "there is no such folder"),
        (
            "generate POLICY hello --compute quality:-1",
            1,
            "`compute` must be a number, one number per row, or `quality",
        ),
        ("generate POLICY hello --compute quality:.1", 1, "No setting of this policy's calibration stays within 0.1"),
        ("generate POLICY hello --compute much", 1, "'much' is no budget: write a share of dense such as `.4`"),
        ("generate POLICY hello --threads x", 2, "parse string as an integer. `sol-hf generate --help` explains."),
        ("generate POLICY hello --bits 2", 1, "below the smallest level of the action space"),
        ("generate POLICY hello --bits 8 --compute 0.7", 1, "Pass either `compute` or a budget"),
        ("generate BASE hello --base BASE", 1, "is a base, no policy"),
        ("coverage /absent/folder/x", 1, "there is no such folder"),
    ],
)
def test_an_error_is_one_line(folders, capsys, line, status, message):
    line = line.replace("POLICY", str(folders / "policy")).replace("BASE", str(folders / "base"))
    assert cli.main(line.split()) == status
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1 and printed.startswith("sol-hf")


def test_debug_shows_where_an_error_is_from(capsys):
    assert cli.main(["coverage", "/absent/folder/x", "--debug"]) == 1
    printed = capsys.readouterr().err
    assert "Traceback" in printed and printed.splitlines()[-1].startswith("sol-hf: /absent/folder/x: there is no")


def test_a_quality_is_a_budget_as_a_number_is(folders, monkeypatch, capsys):
    assert (
        cli.main(["generate", str(folders / "policy"), "hello", "--compute", "quality:1", "--max-new-tokens", "2"])
        == 0
    )
    monkeypatch.setattr(sys, "stdin", io.StringIO("/budget quality:1\n"))
    assert cli.main(["chat", str(folders / "policy")]) == 0
    assert "compute=quality:1" in capsys.readouterr().out


def test_an_empty_prompt_is_named(folders, capsys):
    for budget in ([], ["--bits", "8"]):
        assert cli.main(["generate", str(folders / "policy"), "", *budget]) == 1
        assert capsys.readouterr().err == "sol-hf: The prompt is empty: at least one token is needed.\n"


def test_a_text_that_is_read_in_full_says_so(folders, capsys):
    """The default of a base: short texts are read in full, whatever was asked."""
    budget = ["--token-keep", "0.5", "--max-new-tokens", "4"]
    assert cli.main(["generate", str(folders / "base"), "hello", *budget, "--threads", "1"]) == 0
    printed = capsys.readouterr().err
    assert "token_keep 1.00" in printed and "texts of up to 256 tokens are read in full" in printed


def test_an_unknown_error_is_named(monkeypatch, capsys):
    monkeypatch.setattr("sol_hf.cli.main.build_app", lambda _: 1 / 0)
    assert cli.main(["env"]) == 1
    assert capsys.readouterr().err == "sol-hf: ZeroDivisionError: division by zero (--debug shows where)\n"


def test_the_version_is_printed(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


def test_a_text_is_that_of_the_library(folders, capsys):
    prompt = "The tide comes in, and the tide goes out"
    command = ["generate", str(folders / "policy"), prompt, "--max-new-tokens", "6", "--temperature", "0", "--json"]
    assert cli.main([*command, "--token-keep", "0.5", "--bits", "8"]) == 0
    found = json.loads(capsys.readouterr().out)
    model = SOLForCausalLM.from_pretrained(folders / "policy")
    tokenizer = runpy.run_path(str(ROOT / "examples" / "generate.py"))["tiny_tokenizer"]()
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    call = dict(token_keep=0.5, bits=8, max_new_tokens=6, do_sample=False, return_dict_in_generate=True)
    output = model.generate(ids, **call)
    assert found["text"] == tokenizer.decode(output.sequences[0, ids.shape[1] :], skip_special_tokens=True)
    assert list(found["realised"].values()) == pytest.approx(output.realised[0].tolist())


def test_a_chat_goes_on_and_its_budget_can_be_changed(folders, monkeypatch, capsys):
    lines = "Hello there\n/budget .7\nAnd now?\n/budget off\n/budget token_keep=.5 bits=8\nMore\n/lossless on\nLast\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines + "/new\n/quit\nnever\n"))
    assert cli.main(["chat", str(folders / "policy"), "--max-new-tokens", "5", "--temperature", "0"]) == 0
    printed = capsys.readouterr().out
    meters = [line for line in printed.splitlines() if line.startswith("5 tokens")]
    assert len(meters) == 4 and "net keep 1.00" in meters[0] and "agreement" not in meters[0]
    assert all("agreement" in meter and "net keep 1.00" not in meter for meter in meters[1:3])
    assert "net keep 1.00" in meters[3]
    assert (
        "compute=0.7" in printed and "token_keep=0.5 bits=8, lossless" in printed and "A new conversation." in printed
    )


def test_a_wrong_budget_in_a_chat_ends_it_where_nobody_can_correct_it(folders, monkeypatch, capsys):
    for line, message in (
        ("/budget 9", "ompute"),
        ("/budget bits", "such as `token_keep=.5 bits=8`"),
        ("/budget bits=x", "'x' is not a number"),
        ("/budget quality:.1", "No setting of this policy's calibration stays within 0.1 nats"),
        ("/bugdet", "no command"),
    ):
        monkeypatch.setattr(sys, "stdin", io.StringIO(line + "\n"))
        assert cli.main(["chat", str(folders / "policy")]) == 1
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_chat_in_a_terminal_has_a_meter_in_its_last_line(folders):
    """A pseudo terminal of 24 rows."""
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "sol_hf.cli", "chat", str(folders / "policy"), "--max-new-tokens", "40"]
    environment = os.environ | {"TERM": "xterm", "LINES": "24", "COLUMNS": "80", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower, env=environment)
    os.close(follower)
    seen = read_until(leader, "> ")
    os.write(leader, b"/budget .7\n")
    seen += read_until(leader, "compute=0.7", "> ")
    os.write(leader, b"/budget 9\n")
    seen += read_until(leader, "> ")
    os.write(leader, b"Hello there\n")
    seen += read_until(leader, "agreement", "> ")
    os.write(leader, b"/quit\n")
    assert process.wait(30) == 0
    os.close(leader)
    assert "/help lists the commands" in seen and seen.count("\x1b[24;1H") > 20  # the meter, step by step
    assert "\x1b[1;23r" in seen and "\x1b[r" in seen  # room for it, and given back
    assert re.search(r"40 tokens at [\d.]+/s, .*agreement [\d.]+", seen.replace("\r\n", " "))
    shown = re.findall(r"\x1b\[24;1H\x1b\[2K\x1b\[2m([^\x1b]*)", seen)
    whole = re.compile(r"1 token|\d+ tokens at [\d.]+/s|(net keep|token_keep|mlp_keep|bits|bytes|agreement) \d+\.\d+")
    assert shown and all(len(line) < 80 for line in shown)
    assert all(whole.fullmatch(part.rstrip(",")) for line in shown for part in line.split(", ")), shown  # none is cut


def read_until(terminal: int, *texts: str, seconds: float = 150) -> str:
    """What a terminal shows, until the texts were seen one after another."""
    seen, end = "", time.monotonic() + seconds
    pattern = re.compile(".*?".join(map(re.escape, texts)), re.DOTALL)
    while not pattern.search(seen):
        assert time.monotonic() < end, seen
        if select.select([terminal], [], [], 0.2)[0]:
            seen += os.read(terminal, 4096).decode("utf-8", errors="replace")
    return seen


def test_coverage_runs_every_axis_in_the_dtype_of_the_base(folders, tmp_path, monkeypatch, capsys):
    base = AutoModelForCausalLM.from_pretrained(folders / "base", dtype=torch.bfloat16)
    base.save_pretrained(tmp_path / "half")
    AutoTokenizer.from_pretrained(folders / "base").save_pretrained(tmp_path / "half")
    assert cli.main(["coverage", str(tmp_path / "half")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "LlamaForCausalLM in bfloat16, 2 decoder layers" and lines[-1].split() == [
        "KV",
        "refresh",
        "yes",
    ]
    assert [line.split()[1:] for line in lines[1:5]] == [["2", "of", "2", "layers:", "0-1"]] * 4

    def fails(*args, **kwargs):
        raise KeyError("experts")

    monkeypatch.setattr(SOLForCausalLM, "generate", fails)
    assert cli.main(["coverage", str(tmp_path / "half")]) == 1
    assert "FAULT: bits: KeyError: 'experts'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "way_on"),
    [
        ("pareto POLICY --data texts.jsonl --out sweep", "The same command continues."),
        ("evaluate POLICY texts.jsonl --out=parts", "The same command continues."),
        ("evaluate POLICY texts.jsonl", "Give --out DIR to be able to continue."),
        ("train --train_file texts.jsonl", "with --resume also from the last checkpoint in --output_dir."),
        ("bench POLICY", "stopped."),
    ],
)
def test_a_stopped_command_says_how_to_go_on(monkeypatch, capsys, line, way_on):
    def stop(given):
        raise KeyboardInterrupt

    monkeypatch.setattr("sol_hf.cli.main._run", stop)
    assert cli.main(line.split()) == 130
    assert capsys.readouterr().err.strip().endswith(way_on)
