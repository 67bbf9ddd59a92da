# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Command line arguments that all evaluations on text have in common. Imports nothing large, for a quick `--help`."""

import argparse
from collections.abc import Callable

from ..integrations.packaged_bases import NEED_NO_HUB


DTYPES = ("auto", "float32", "bfloat16", "float16")


def budget_values(text: str) -> tuple[float, ...]:
    """A budget from `0.5,0.7,8`, for argparse; the number of axes is checked when the policy is loaded."""
    try:
        return tuple(float(value) for value in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a list of numbers, one per axis of the policy: write e.g. 0.5,0.7,8"
        ) from error


def rate(text: str) -> float | str:
    """A value for `compute=`: a number, or a quality such as `quality:0.02`."""
    try:
        return float(text)
    except ValueError as error:
        if text.startswith("quality:"):
            return text
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a number nor a quality, such as quality:0.02"
        ) from error


AUTO = "auto"


def budgets_or_auto(text: str) -> tuple[float, ...] | str:
    """A budget as of [`budget_values`], or `auto`."""
    return AUTO if text == AUTO else budget_values(text)


def at_least(least: int) -> Callable[[str], int]:
    """A type for argparse: a whole number that is not smaller than `least`."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from error
        if number < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {number}")
        return number

    return read


def add_input_arguments(parser: argparse.ArgumentParser, blocks: int) -> None:
    """Add the arguments that [`load_policy_and_blocks`] reads, except `policy` and `texts`.

    Args:
        parser (`argparse.ArgumentParser`): Gets `--base`, `--dtype`, `--text-column`, `--blocks`,
            `--skip-blocks`, `--per-document`, `--context-length`, `--episodes`, `--page-places`, `--budgets`,
            `--hard`, `--soft`, `--budget-horizon`, `--bits-backend` and `--batch-size`.
        blocks (`int`): Default number of blocks.
    """
    parser.add_argument("--base", help=f"Hub id or folder of the base; or {NEED_NO_HUB}")
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="of the base")
    parser.add_argument("--text-column", default="text", help="column that holds the text")
    parser.add_argument("--blocks", type=at_least(1), default=blocks, help="number of blocks")
    parser.add_argument("--skip-blocks", type=at_least(0), default=0, help="blocks to leave out before them")
    parser.add_argument(
        "--per-document",
        type=at_least(1),
        metavar="N",
        help="take at most N blocks of a document, so that intervals over documents are of more of them",
    )
    parser.add_argument(
        "--context-length",
        type=at_least(1),
        nargs="+",
        default=[256],
        help="tokens of a block before its first step; the blocks take several in turn",
    )
    parser.add_argument("--episodes", type=at_least(1), default=6, help="of a block, with a KV refresh between them")
    parser.add_argument(
        "--page-places",
        type=at_least(1),
        help="contexts are 0, 1, ... tokens longer in turn, so many different ones; by default a page, 1 for none",
    )
    parser.add_argument(
        "--budgets",
        type=budgets_or_auto,
        nargs="+",
        help="one number per axis of the policy each: token_keep,mlp_keep,bits; or auto: nine at which the fixed "
        "schedule costs .02 to .5 nats, found by a quick measurement",
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--hard", action="store_true", help="enforce the budgets; by default as generate does")
    mode.add_argument("--soft", action="store_true", help="let budgets be missed")
    parser.add_argument(
        "--budget-horizon",
        choices=("generation", "episode"),
        help="over what --hard keeps a budget; by default what the policy has stored, else generation",
    )
    parser.add_argument("--bits-backend", help="fake, int8 or nested; by default what the policy has stored")
    parser.add_argument("--batch-size", type=at_least(1), default=8, help="blocks that run at once, for every budget")
