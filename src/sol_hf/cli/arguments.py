# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Command line arguments that all evaluations on text have in common. Imports nothing large, for a quick `--help`."""

import argparse


SMOLLM2 = "smollm2-135m"


def budget_values(text: str) -> tuple[float, ...]:
    """A budget from `0.5,0.7,8`, for argparse; the number of axes is checked when the policy is loaded."""
    try:
        return tuple(float(value) for value in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a list of numbers, one per axis of the policy: write e.g. 0.5,0.7,8"
        ) from error


def add_input_arguments(parser: argparse.ArgumentParser, blocks: int) -> None:
    """Add the arguments that [`load_policy_and_blocks`] reads, except `policy` and `texts`.

    Args:
        parser (`argparse.ArgumentParser`): Gets `--base`, `--dtype`, `--text-column`, `--blocks`,
            `--skip-blocks`, `--context-length`, `--budgets`, `--hard` and `--batch-size`.
        blocks (`int`): Default number of blocks.
    """
    parser.add_argument("--base", help=f"Hub id or folder of the base; {SMOLLM2} needs no Hub, see smollm2.py")
    parser.add_argument("--dtype", default="float32", help="of the base: auto, float32, bfloat16 or float16")
    parser.add_argument("--text-column", default="text", help="column that holds the text")
    parser.add_argument("--blocks", type=int, default=blocks, help="number of blocks")
    parser.add_argument("--skip-blocks", type=int, default=0, help="blocks to leave out before them")
    parser.add_argument("--context-length", type=int, default=256, help="tokens of a block before its episode")
    parser.add_argument(
        "--budgets",
        type=budget_values,
        nargs="+",
        help="one number per axis of the policy each: token_keep,mlp_keep,bits",
    )
    parser.add_argument("--hard", action="store_true", help="enforce the budgets, as generate does")
    parser.add_argument("--batch-size", type=int, default=8, help="blocks that run at the same time, once per budget")
