# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The commands of `sol-hf`. Imports nothing large, so that a help comes at once."""

from collections.abc import Callable
from typing import Annotated

import typer

from .chat import chat
from .convert import convert
from .coverage import coverage
from .demo import demo
from .environment import env
from .generate import generate
from .serve import serve


WHOLE_LINE: dict = dict(ignore_unknown_options=True, allow_extra_args=True, allow_interspersed_args=False)
"""Settings of a command that reads the rest of the line itself."""
WITH_PARSER = {
    "train": "train a policy with GRPO",
    "evaluate": "what a policy is worth at several budgets",
    "pareto": "sweep budgets and controllers on text",
    "bench": "find the fastest way to decode on this machine",
    "figures": "draw sweeps, actions of a text, KV pollution",
    "lm-eval": "run tasks of lm-evaluation-harness under a budget",
}
"""Commands that read the rest of the line with a parser of their own, and what they do."""
OWN: dict[str, tuple[Callable[..., int], str]] = {
    "demo": (demo, "one prompt in several ways, with speeds"),
    "generate": (generate, "one text, densely or under a budget"),
    "chat": (chat, "a conversation, with a meter of what it spends"),
    "serve": (serve, "OpenAI's API, with a budget per request"),
    "convert": (convert, "a published checkpoint as a policy's folder"),
    "coverage": (coverage, "which layers of a base each axis reaches"),
    "env": (env, "versions and machine, for a report of a problem"),
}
"""Commands of this folder, and what they do."""


def build_app(run_with_parser: Callable[[str, list[str]], int]) -> typer.Typer:
    """The application.

    Args:
        run_with_parser (`Callable`): Runs a command of [`WITH_PARSER`], by its name and the rest of the line.
    """
    app = typer.Typer(rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False)
    app.callback()(_common)
    for name, (command, text) in OWN.items():
        app.command(name, short_help=text)(command)
    for name, text in WITH_PARSER.items():
        app.command(name, help=text, context_settings=WHOLE_LINE, add_help_option=False)(
            _command_of(name, run_with_parser)
        )
    return app


def _command_of(name: str, run_with_parser: Callable[[str, list[str]], int]) -> Callable[[typer.Context], int]:
    def command(context: typer.Context) -> int:
        return run_with_parser(name, list(context.args))

    return command


def _common(
    version: Annotated[bool, typer.Option("--version", help="print the version")] = False,
    imported: Annotated[
        str | None, typer.Option("--import", metavar="MODULE", help="first import a module that registers controllers")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="show where an error comes from")] = False,
) -> None:
    """Decode with a compute budget: try it, measure it, serve it.

    sol-hf COMMAND --help explains a command, with an example. Errors are one line; --debug shows where they are from.
    """
