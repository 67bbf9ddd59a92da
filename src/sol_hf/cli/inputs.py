# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Command line arguments that all evaluations on text have in common, and the model and blocks that they name."""

import argparse
from itertools import islice
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from ..episodes.text_blocks import TextBlocks, load_text, pack_blocks
from ..integrations.smollm2 import fetch_smollm2
from ..modeling_sol import SOLForCausalLM


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


def load_policy(options: argparse.Namespace) -> tuple[SOLForCausalLM, PreTrainedTokenizerBase]:
    """The policy on its base, and the tokenizer.

    Args:
        options (`argparse.Namespace`): `policy`, `base` and `dtype`.
    """
    if options.base is None:
        model = SOLForCausalLM.from_pretrained(options.policy, dtype=options.dtype)
        source, revision = model.config.base_model_name_or_path, model.config.base_model_revision
        return model, AutoTokenizer.from_pretrained(source, revision=revision or "main")
    source = fetch_smollm2() if options.base == SMOLLM2 else options.base
    base = AutoModelForCausalLM.from_pretrained(source, dtype=options.dtype)
    return SOLForCausalLM.from_pretrained(options.policy, base=base), AutoTokenizer.from_pretrained(source)


def load_policy_and_blocks(options: argparse.Namespace) -> tuple[SOLForCausalLM, TextBlocks]:
    """The model, and blocks of `context + steps + 1` tokens of the texts; only as much text is read as needed.

    Args:
        options (`argparse.Namespace`): `policy`, `texts`, and the arguments of [`add_input_arguments`].

    Raises:
        ValueError: if the texts give fewer blocks.
    """
    model, tokenizer = load_policy(options)
    return model, read_blocks(options, model, tokenizer, model.config.episode_length, options.skip_blocks)


def read_blocks(
    options: argparse.Namespace, model: SOLForCausalLM, tokenizer: PreTrainedTokenizerBase, steps: int, skip: int = 0
) -> TextBlocks:
    """Blocks of `context + steps + 1` tokens of the texts; only as much text is read as needed.

    Args:
        options (`argparse.Namespace`): `texts`, `text_column`, `blocks` and `context_length`.
        model ([`SOLForCausalLM`]): Its base limits the length of a block.
        tokenizer (`PreTrainedTokenizerBase`): Of the base.
        steps (`int`): Decode steps of a block.
        skip (`int`, *optional*, defaults to 0): Blocks to leave out before them.

    Raises:
        ValueError: if the texts give fewer blocks.
    """
    length = options.context_length + steps + 1
    longest = model.config.base_max_position_embeddings
    packing: dict[str, Any] = dict(text_column=options.text_column, max_positions=longest, documents=True)
    packed = pack_blocks(load_text(options.texts, streaming=True), tokenizer, length, **packing)
    if skip < 0:
        raise ValueError(f"The number of blocks to skip cannot be negative, got {skip}.")
    blocks = list(islice(packed, skip, skip + options.blocks))
    if len(blocks) < options.blocks:
        after = f" after the first {skip}" if skip else ""
        raise ValueError(
            f"{options.texts} gives {len(blocks)} blocks of {length} tokens{after}, not {options.blocks}: give more "
            f"text, or --blocks {len(blocks)}."
        )
    return TextBlocks.of(blocks)
