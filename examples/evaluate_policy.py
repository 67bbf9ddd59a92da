# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Prints the perplexity of a policy at several budgets, and that of the fixed schedule at the same cost.

    python examples/evaluate_policy.py policy texts.jsonl.gz --base smollm2-135m --blocks 256 --context-length 256 \
        --budgets 0.5,0.7,8 0.3,0.9,8 --hard --dense --json evaluation.json

Without `--base` it uses the base that the policy's config names, without `--budgets` nine over the published grid,
clipped to the policy's action space. The blocks are divided among the processes of an `accelerate launch`. Only the
text for `--blocks` blocks of context, episode and one token is read. `docs/training.md` explains the columns.
"""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import PartialState

from sol_hf import __version__
from sol_hf.cli.inputs import add_input_arguments, load_policy_and_blocks
from sol_hf.episodes.step_settings import StepSettings
from sol_hf.episodes.stored_files import write_json
from sol_hf.evaluation.policy_evaluation import (
    BudgetEvaluation,
    budgets_within,
    evaluate_budgets,
    format_table,
    to_rows,
)
from sol_hf.evaluation.sweep.folder import describe


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("policy", help="folder or Hub id of a policy")
    parser.add_argument(
        "texts", help="texts that the policy was not trained on: .jsonl, .txt, .csv, also .gz; .parquet"
    )
    add_input_arguments(parser, blocks=256)
    parser.add_argument("--dense", action="store_true", help="also the perplexity of the base itself")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write all figures here, with the loss of every block"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> list[BudgetEvaluation]:
    """Prints the table and returns its data."""
    options, state = parse(arguments), PartialState(cpu=not torch.accelerator.is_available())
    model, blocks = load_policy_and_blocks(options)
    evaluations = evaluate_budgets(
        model.to(state.device),
        blocks.tokens,
        options.context_length,
        options.budgets or budgets_within(StepSettings.of(model).space),
        hard=options.hard,
        batch_size=options.batch_size,
        progress=True,
        dense=options.dense,
        documents=blocks.documents,
    )
    if state.is_main_process:
        print(format_table(evaluations))
        if options.json is not None:
            rows = [asdict(x) | row for x, row in zip(evaluations, to_rows(evaluations), strict=True)]
            settings = {name: str(value) if name == "json" else value for name, value in vars(options).items()}
            made_with = {"sol_hf": __version__, "processes": state.num_processes, **describe(model, blocks.tokens)}
            write_json(
                options.json,
                {"settings": settings, "processes": state.num_processes, "made_with": made_with, "evaluations": rows},
            )
    return evaluations


if __name__ == "__main__":
    main(sys.argv[1:])
