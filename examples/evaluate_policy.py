# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Prints the perplexity of a policy at several budgets, beside that of the fixed schedule at the same cost.

    python examples/evaluate_policy.py policy texts.jsonl.gz --base smollm2-135m --blocks 256 --context-length 256 \
        --budgets 0.5,0.7,8 0.3,0.9,8 --hard --dense --json evaluation.json

Without `--base` it takes the base that the policy's config names, without `--budgets` nine over the published grid,
brought into the policy's action space. Processes of an `accelerate launch` share the work. Texts are read as far as
they are needed: `--blocks` blocks of context, episode and one token. `docs/training.md` explains the columns.
"""

import argparse
import json
import sys
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import AutoModelForCausalLM, AutoTokenizer

from sol_hf import SOLForCausalLM
from sol_hf.evaluation import BudgetEvaluation, budgets_within, evaluate_budgets, format_table, to_rows
from sol_hf.smollm2 import fetch_smollm2
from sol_hf.text_blocks import load_text, pack_blocks


SMOLLM2 = "smollm2-135m"


def triple(text: str) -> tuple[float, ...]:
    """A budget from `0.5,0.7,8`."""
    values = tuple(float(value) for value in text.split(","))
    if len(values) != 3:
        raise argparse.ArgumentTypeError(f"{text!r} is not token_keep,mlp_keep,bits: write e.g. 0.5,0.7,8")
    return values


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("policy", help="folder or Hub id of a policy")
    parser.add_argument(
        "texts", help="texts that the policy was not trained on: .jsonl, .txt, .csv, also .gz; .parquet"
    )
    parser.add_argument("--base", help=f"Hub id or folder of the base; {SMOLLM2} needs no Hub, see smollm2.py")
    parser.add_argument("--dtype", default="float32", help="of the base: auto, float32, bfloat16 or float16")
    parser.add_argument("--text-column", default="text", help="column that holds the text")
    parser.add_argument("--blocks", type=int, default=256, help="blocks to play")
    parser.add_argument("--context-length", type=int, default=256, help="tokens of a block before its episode")
    parser.add_argument("--budgets", type=triple, nargs="+", help="token_keep,mlp_keep,bits each")
    parser.add_argument("--hard", action="store_true", help="keep the budgets for certain, as generate does")
    parser.add_argument("--dense", action="store_true", help="also the perplexity of the base itself")
    parser.add_argument("--batch-size", type=int, default=8, help="blocks that run at the same time, once per budget")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write all figures here, with the loss of every block"
    )
    return parser.parse_args(arguments)


def load(options: argparse.Namespace) -> tuple[SOLForCausalLM, torch.Tensor]:
    """The model, and blocks `(blocks, context + steps + 1)` of the texts."""
    if options.base is None:
        model = SOLForCausalLM.from_pretrained(options.policy, dtype=options.dtype)
        source, revision = model.config.base_model_name_or_path, model.config.base_model_revision
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision or "main")
    else:
        source = fetch_smollm2() if options.base == SMOLLM2 else options.base
        base = AutoModelForCausalLM.from_pretrained(source, dtype=options.dtype)
        model, tokenizer = (
            SOLForCausalLM.from_pretrained(options.policy, base=base),
            AutoTokenizer.from_pretrained(source),
        )
    length = options.context_length + model.config.episode_length + 1
    texts = load_text(options.texts, streaming=True)
    longest = model.config.base_max_position_embeddings
    packed = pack_blocks(texts, tokenizer, length, text_column=options.text_column, max_positions=longest)
    blocks = [block["input_ids"] for block in islice(packed, options.blocks)]
    if len(blocks) < options.blocks:
        raise ValueError(
            f"{options.texts} gives {len(blocks)} blocks of {length} tokens, not {options.blocks}: give more text, or "
            f"--blocks {len(blocks)}."
        )
    return model, torch.tensor(blocks)


def main(arguments: list[str] | None = None) -> list[BudgetEvaluation]:
    """Prints the table and returns what is in it."""
    options, state = parse(arguments), PartialState(cpu=not torch.accelerator.is_available())
    model, blocks = load(options)
    evaluations = evaluate_budgets(
        model.to(state.device),
        blocks,
        options.context_length,
        options.budgets or budgets_within(model.action_space),
        hard=options.hard,
        batch_size=options.batch_size,
        progress=True,
        dense=options.dense,
    )
    if state.is_main_process:
        print(format_table(evaluations))
        if options.json is not None:
            rows = [asdict(x) | row for x, row in zip(evaluations, to_rows(evaluations), strict=True)]
            settings = {name: str(value) if name == "json" else value for name, value in vars(options).items()}
            options.json.write_text(
                json.dumps({"settings": settings, "processes": state.num_processes, "evaluations": rows}, indent=1)
            )
    return evaluations


if __name__ == "__main__":
    main(sys.argv[1:])
