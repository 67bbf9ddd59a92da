# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The command `sol-hf`.

    sol-hf demo                                    one prompt in several ways, with speeds
    sol-hf generate MODEL PROMPT, chat MODEL       a text or a conversation under a budget
    sol-hf serve MODEL                             OpenAI's API, with a budget per request, see docs/serving.md
    sol-hf train --config FILE                     a policy, see docs/training.md
    sol-hf evaluate POLICY TEXTS                   what it is worth at several budgets
    sol-hf pareto POLICY --data FILE --out DIR     sweep budgets and controllers, see docs/pareto.md
    sol-hf bench [POLICY|BASE]                     the fastest way to decode on this machine, see docs/performance.md
    sol-hf lm-eval ...                             tasks of lm-evaluation-harness under a budget
    sol-hf figures ...                             of sweeps and texts
    sol-hf convert CHECKPOINT --base B --out DIR   a published checkpoint as a policy
    sol-hf coverage BASE, env                      what each axis reaches; versions
    sol-hf --import MODULE ...                     first import a module that registers controllers or axes

In several processes: `accelerate launch -m sol_hf.cli pareto ...`. `app.py` has all commands.
"""

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from ..errors import missing_extra
from ..version import __version__
from .app import build_app
from .arguments import add_input_arguments, at_least
from .bench import add_bench


USER_ERRORS = (ValueError, OSError)
"""Errors that wrong input raises. Their messages say what to do; other errors are shown with their kind."""
WRONG_USAGE, INTERRUPTED = 2, 130
EXAMPLES = {
    "pareto": "sol-hf pareto my-policy --data texts.jsonl --controllers policy,fixed --budgets 0.5,0.6,8 "
    "--blocks 2 --context-length 20 --out sweep",
    "bench": "sol-hf bench my-policy --contexts 64 --steps 4 --rounds 1 --blocks 0",
}
EXTRAS = {"serve": "serve", "demo": "demo", "train": "train"}
"""The extra to name first if a package is missing, by command; `eval` for the others."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments (`Sequence[str]`, *optional*): Arguments to use instead of `sys.argv[1:]`.

    Returns:
        `int`: Exit status: 0, 1 for an error, 2 for a line that cannot be read, 130 for Ctrl-C.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    try:
        return _run(given)
    except typer.Exit as error:
        return error.exit_code
    except KeyboardInterrupt:
        print(f"sol-hf: stopped.{how_to_continue(given)}", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        return _explain(given, error, debug)


def _run(given: list[str]) -> int:
    given = _import_modules(given)
    if given[:1] == ["--version"]:
        print(__version__)
        return 0
    app = build_app(_run_with_parser)
    return app(given, prog_name="sol-hf", standalone_mode=False) or 0


def how_to_continue(given: list[str]) -> str:
    """A sentence for a command that was stopped, if it keeps what it has done; `given` are its arguments."""
    command = next((argument for argument in given if not argument.startswith("-")), "")
    keeps = "--out" in {argument.partition("=")[0] for argument in given}
    if command == "train":
        return (
            " The same command goes on with a start from measured costs; with --resume also from the last checkpoint "
            "in --output_dir."
        )
    if command in ("pareto", "evaluate"):
        return " The same command continues." if keeps else " Give --out DIR to be able to continue."
    return ""


def _explain(given: list[str], error: Exception, debug: bool) -> int:
    """Print an error in one line, after its traceback if that is wanted; returns the exit status."""
    if debug:
        traceback.print_exc()
    if hasattr(error, "format_message"):  # typer could not read the line
        context = getattr(error, "ctx", None)
        command = "sol-hf" if context is None else context.command_path
        print(f"{command}: {_sentence(error.format_message())} `{command} --help` explains.", file=sys.stderr)
        return WRONG_USAGE
    command = next((argument for argument in given if not argument.startswith("-")), "")
    if isinstance(error, ModuleNotFoundError):
        error = missing_extra("`sol-hf`", error, preferred=EXTRAS.get(command, "eval"))
    is_clear = isinstance(error, USER_ERRORS) or str(error).startswith("`sol-hf` needs")
    kind = "" if is_clear else f"{type(error).__name__}: "
    hint = "" if is_clear or debug else " (--debug shows where)"
    print(f"sol-hf: {kind}{_one_line(str(error))}{hint}", file=sys.stderr)
    return 1


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _sentence(text: str) -> str:
    """In one line, with a full stop if it ends without one."""
    line = _one_line(text)
    return line if line.endswith((".", "?", "!")) else f"{line}."


def _run_with_parser(name: str, rest: list[str]) -> int:
    """Run a command that reads the rest of the line itself."""
    if name == "lm-eval":
        if rest in (["--help"], ["-h"]):
            return importlib.import_module("sol_hf.integrations.lm_eval_help").print_help() or 0
        return importlib.import_module("sol_hf.integrations.lm_eval_adapter").main(rest) or 0
    if name in ("train", "evaluate", "figures"):
        importlib.import_module(f"sol_hf.cli.{name}").main(rest)
        return 0
    options = build_parser().parse_args([name, *rest])
    return options.run(options)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the commands that share their options with scripts."""
    parser = argparse.ArgumentParser(prog="sol-hf")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_pareto(commands)
    add_bench(commands)
    for name, example in EXAMPLES.items():
        commands.choices[name].epilog = f"Example: {example}"
    return parser


def _import_modules(given: list[str]) -> list[str]:
    """Import the modules of leading `--import MODULE` options and return the other arguments.

    Modules of the current folder are found, too. The options come before the command and are read first, since a
    command may have a parser of its own.
    """
    while given[:1] == ["--import"] and len(given) > 1:
        if (here := os.getcwd()) not in sys.path:
            sys.path.insert(0, here)
        try:
            importlib.import_module(given[1])
        except ModuleNotFoundError as error:
            raise ValueError(f"--import {given[1]}: {error}.") from error
        given = given[2:]
    return given


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _add_pareto(commands: Any) -> None:
    parser = commands.add_parser("pareto", help="sweep budgets and controllers on text")
    parser.add_argument("policy", help="folder or Hub id of a policy")
    parser.add_argument(
        "--data", dest="texts", required=True, help="texts: .jsonl, .txt, .csv, also .gz; .parquet; or a Hub id"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the sweep; a stopped sweep continues there")
    parser.add_argument(
        "--controllers",
        type=_names,
        default="policy,fixed,fixed:place,random:20,entropy,drift,oracle",
        help="comma-separated, any registered controller; random:N is the best of N random schedules, fixed:place "
        "chooses levels by the place in a page, oracle:K counts the damage of a level in the K later steps too",
    )
    parser.add_argument(
        "--grid", choices=("default", "published"), default="default", help="9 or 567 budgets, if not --budgets"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the random schedules")
    parser.add_argument("--schedules-at-once", type=at_least(1), default=16, help="budgets that run at the same time")
    parser.add_argument(
        "--save", action="store_true", help="write the policy's front into its config, for generate(compute=...)"
    )
    parser.add_argument(
        "--unit",
        choices=("net_keep", "bytes", "time"),
        help="with --save, what `compute` counts: the mean of the axes (default), or the share of the bytes or of the "
        "time of a dense step, which is measured here",
    )
    add_input_arguments(parser, blocks=64)
    parser.set_defaults(run=run_pareto)


def run_pareto(options: argparse.Namespace) -> int:
    """Run a sweep, and write and print its summary; see [`Sweep`].

    Args:
        options (`argparse.Namespace`): Of the subcommand.
    """
    import torch
    from accelerate import PartialState

    from ..episodes.step_settings import StepSettings
    from ..episodes.stored_files import write_json
    from ..evaluation.budget_targets import BUDGETS, budgets_within
    from ..evaluation.sweep.calibration_file import check_savable
    from ..evaluation.sweep.dial_points import DialSetting, save_dial
    from ..evaluation.sweep.entries import parse_entries
    from ..evaluation.sweep.summary import format_summary, summarize_sweep
    from ..evaluation.sweep.sweep import PUBLISHED_GRID, Sweep, SweepConfig
    from ..evaluation.sweep.table import read_table
    from .inputs import budgets_of, is_hard, load_policy_and_texts

    parse_entries(options.controllers)  # before anything is loaded
    if options.save:
        check_savable(options.policy, options.controllers)
    elif options.unit is not None:
        raise ValueError("--unit says what the table that --save writes counts: give --save, or leave out --unit.")
    state = PartialState(cpu=not torch.accelerator.is_available())
    model, texts = load_policy_and_texts(options)
    model = model.to(state.device)
    grid, hard = PUBLISHED_GRID if options.grid == "published" else BUDGETS, is_hard(options, model)
    given = (
        budgets_of(options, model, texts) if options.budgets else budgets_within(StepSettings.of(model).space, grid)
    )
    config = SweepConfig(
        controllers=options.controllers,
        budgets=tuple(given),
        context_length=texts.contexts,
        seeds=tuple(options.seeds),
        hard=hard,
        batch_size=options.batch_size,
        schedules_at_once=options.schedules_at_once,
    )
    Sweep(model, texts.tokens, config, options.out, progress=True, documents=texts.documents).run()
    if state.is_main_process:
        summary = summarize_sweep(read_table(options.out), read_table(options.out, "blocks"))
        write_json(Path(options.out, "summary.json"), summary)
        print(format_summary(summary))
        if options.save:
            setting = DialSetting(options.unit or "net_keep", max(options.context_length), hard)
            print(f"\n{save_dial(options.policy, options.out, summary, model, texts.tokens, setting)}")
    return 0
