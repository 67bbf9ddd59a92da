# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Writes docs/cli.md: every command with its example and its options, from the commands themselves.

python docs/write_cli_page.py
"""

import argparse
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from sol_hf.cli import evaluate, figures
from sol_hf.cli.app import OWN, WITH_PARSER, build_app
from sol_hf.cli.main import build_parser


PAGE = Path(__file__).parent / "cli.md"
BEGIN = """# Command line

<!-- written by docs/write_cli_page.py -->

`sol-hf` does from a terminal what the package does from Python. `sol-hf COMMAND --help` shows what stands here.

- An error is a line and the status 1; a line that cannot be read has the status 2. `--debug` adds the traceback.
- `--import MODULE`, before the command, first imports a module that registers controllers or axes.
- `MODEL` is a folder or Hub id of a policy, or of a base, which is then run by the fixed schedule at weights in 4 to 8
  bits (`nested`). `smollm2-135m` is a small base that needs no Hub.
- In several processes: `accelerate launch -m sol_hf.cli evaluate ...`.

"""
ELSEWHERE = {
    "train": "`sol-hf train --help` has the options, [the training page](training.md) what they mean.",
    "lm-eval": "The options are those of [lm-evaluation-harness](lm_eval.md).",
}


def page() -> str:
    """The text of the page."""
    parts = [BEGIN, "| command | |\n|---|---|\n"]
    texts = {name: text for name, (_, text) in OWN.items()} | WITH_PARSER
    order = "demo generate chat serve train evaluate pareto bench lm-eval figures convert coverage env".split()
    assert sorted(order) == sorted(texts), "every command has its place"
    parts += [f"| [`{name}`](#{name}) | {texts[name]} |\n" for name in order]
    for name in order:
        about, example, rows = described(name)
        parts.append(f"\n## {name}\n\n{about}\n\n```text\n{example}\n```\n")
        if rows:
            parts.append("\n| | |\n|---|---|\n" + "".join(f"| `{option}` | {text} |\n" for option, text in rows))
    return "".join(parts)


def described(name: str) -> tuple[str, str, list[tuple[str, str]]]:
    """What a command does, its example, and its options with their meanings."""
    if name in OWN:
        command: Any = typer.main.get_command(build_app(lambda *_: 0)).commands[name]  # type: ignore[attr-defined]
        about, example = split(command.help)
        return about, example, list(of_typer(command))
    if name in ELSEWHERE:
        path = {"train": "sol_hf.cli.train", "lm-eval": "sol_hf.integrations.lm_eval_help"}[name]
        module = importlib.import_module(path)
        example = split(module.HELP if name == "lm-eval" else module.__doc__ or "")[1]
        return f"{WITH_PARSER[name].capitalize()}. {ELSEWHERE[name]}", example, []
    own = {"evaluate": evaluate, "figures": figures}
    parser = own[name].parser() if name in own else subparsers()[name]
    about = parser.description or f"{WITH_PARSER[name].capitalize()}."
    return about, (parser.epilog or "").removeprefix("Example: "), list(of_argparse(parser))


def subparsers() -> dict[str, argparse.ArgumentParser]:
    """The parsers of `build_parser`, by command."""
    (found,) = [action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction)]
    return found.choices


def split(text: str) -> tuple[str, str]:
    """What stands before the example, and the example."""
    about, _, rest = text.partition("Example: ")
    return " ".join(about.split()), rest.strip().splitlines()[0].strip('"')


def of_typer(command: Any) -> Iterator[tuple[str, str]]:
    """The options of a command of typer."""
    for parameter in command.params:
        if parameter.name == "help":
            continue
        name = parameter.opts[0] if parameter.param_type_name == "option" else parameter.name.upper()
        default = parameter.default
        shown = "" if default is None or default is False or parameter.required else f"; default: {value(default)}"
        yield name, escaped(f"{parameter.help}{shown}")


def of_argparse(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    """The options of a parser of argparse."""
    for action in parser._actions:
        if action.dest == "help":
            continue
        name = action.option_strings[-1] if action.option_strings else action.dest.upper()
        choices = f" ({', '.join(map(str, action.choices))})" if action.choices else ""
        has_default = action.default not in (None, False, argparse.SUPPRESS) and "default" not in (action.help or "")
        between = " " if action.nargs else ","
        shown = f"; default: {value(action.default, between)}" if has_default else ""
        yield name, escaped(f"{action.help}{choices}{shown}".replace("%%", "%"))


def value(default: Any, between: str = " ") -> str:
    """A default, as it is typed; `between` separates the numbers of one value."""
    default = getattr(default, "value", default)
    if isinstance(default, list | tuple):
        return between.join(f"{part:g}" if isinstance(part, float) else str(part) for part in default)
    return str(default)


def escaped(text: str) -> str:
    """A text within a cell of a table."""
    return re.sub(r"\s+", " ", text).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"wrote: {PAGE}\n")
