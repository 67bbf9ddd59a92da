# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""`sol-hf --help` and the help of every command come at once: nothing large is imported for them."""

import argparse
import configparser
import json
import subprocess
import sys

import pytest
import typer

from sol_hf.cli.app import OWN, WITH_PARSER, build_app
from sol_hf.cli.main import build_parser
from sol_hf.version import __version__
from support.paths import ROOT


HELP = """
import json, runpy, sys
sys.argv = ["sol-hf", *json.loads(sys.argv[1])]
try:
    runpy.run_module("sol_hf_command", run_name="__main__")
except SystemExit as stopped:
    status = stopped.code
large = sorted({"torch", "transformers", "datasets", "accelerate", "pyarrow", "numpy"} & set(sys.modules))
print("END", status, *large)
"""


LARGE = {"train"}
"""Commands whose help needs the packages that they use: it lists the arguments of TRL's trainer."""


def commands() -> list[str]:
    return [name for name in (*OWN, *WITH_PARSER) if name not in LARGE]


def printed(*given: str) -> list[str]:
    outcome = subprocess.run(
        [sys.executable, "-c", HELP, json.dumps(given)], capture_output=True, text=True, timeout=60, check=True
    )
    return outcome.stdout.splitlines()


def test_the_parser_has_the_commands():
    asked = "demo generate chat train evaluate pareto lm-eval bench serve figures env coverage"
    assert set(asked.split()) <= {*OWN, *WITH_PARSER}


@pytest.mark.parametrize("given", [["--help"], ["--version"], *([name, "--help"] for name in commands())])
def test_a_help_imports_nothing_large(given):
    lines = printed(*given)
    assert lines[-1] == "END 0"
    if given == ["--version"]:
        assert lines[0] == __version__
    else:
        assert lines[0].lower().startswith(f"usage: sol-hf {' '.join(given[:-1])}".strip())
        assert len(lines) > 8


def test_no_command_is_said_in_a_line():
    assert printed()[-1] == "END 2"


def test_the_help_of_a_command_has_every_option_explained():
    (found,) = [action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction)]
    for name, parser in found.choices.items():
        for action in parser._actions:
            assert action.help, f"{name}: {action.option_strings or action.dest} has no help"
    for name, command in typer.main.get_command(build_app(lambda *_: 0)).commands.items():
        for parameter in command.params:
            assert parameter.help or name in WITH_PARSER, f"{name}: {parameter.name} has no help"


def test_the_command_starts_there():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert setup["options.entry_points"]["console_scripts"].strip() == "sol-hf = sol_hf_command:main"
    assert setup["options"]["py_modules"] == "sol_hf_command"
