# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
"""`sol-hf evaluate`: what a policy is worth at several budgets, against others at equal cost.

Texts are played as `generate` decodes: `--episodes` of decode steps with a KV refresh between them, budgets kept as by
default (`--hard` and `--soft` choose otherwise), contexts that end at every place of a page. The fixed schedule, and
every other contestant, is played at what the policy really spent. Intervals are over documents.

Without `--base` it uses the base that the policy's config names, without `--budgets` nine over the published grid,
clipped to the policy's action space; `--budgets auto` finds nine at which the fixed schedule costs .02 to .5 nats. The
texts are divided among the processes of an `accelerate launch`. Only the text for `--blocks` blocks is read.
`docs/training.md` explains the columns.
"""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import add_input_arguments


if TYPE_CHECKING:
    from ..evaluation.policy_evaluation import BudgetEvaluation

ABOUT = "What a policy is worth at several budgets: KL(dense || policy) and perplexity, against others at equal cost."
EXAMPLE = "Example: sol-hf evaluate my-policy texts.jsonl --blocks 4 --context-length 20 --budgets 0.5,0.6,8"


def names(text: str) -> tuple[str, ...]:
    """Names of contestants, without those that always take part."""
    found = tuple(name.strip() for name in text.split(",") if name.strip())
    return tuple(name for name in found if name not in ("policy", "fixed", "dense"))


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    own = argparse.ArgumentParser(prog="sol-hf evaluate", description=ABOUT, epilog=EXAMPLE)
    own.add_argument("policy", help="folder or Hub id of a policy")
    own.add_argument("texts", help="texts that the policy was not trained on: .jsonl, .txt, .csv, also .gz; .parquet")
    add_input_arguments(own, blocks=64)
    own.add_argument(
        "--contestants",
        type=names,
        default=(),
        help="comma-separated, beside the policy and the fixed schedule: fixed:place, oracle, random:N, or any other "
        "registered controller",
    )
    own.add_argument(
        "--out", type=Path, metavar="DIR", help="keep finished parts: a stopped evaluation continues there"
    )
    own.add_argument("--dense", action="store_true", help="also the perplexity of the base itself")
    own.add_argument("--json", type=Path, metavar="FILE", help="write all figures here, with the loss of every block")
    return own


def main(arguments: list[str] | None = None) -> "list[BudgetEvaluation]":
    """Prints the tables and returns their data."""
    options = parser().parse_args(arguments)
    import torch
    from accelerate import PartialState

    from ..episodes.stored_files import write_json
    from ..evaluation.contest_report import compare_with, divergence_table, gap_share
    from ..evaluation.policy_evaluation import evaluate_budgets, format_table, to_rows
    from ..evaluation.sweep.entries import parse_entries
    from ..evaluation.sweep.folder import describe
    from ..version import __version__
    from .inputs import budgets_of, is_hard, load_policy_and_texts

    state = PartialState(cpu=not torch.accelerator.is_available())
    parse_entries(["policy", "fixed", *options.contestants])  # before anything is loaded
    model, texts = load_policy_and_texts(options)
    model = model.to(state.device)
    budgets = budgets_of(options, model, texts)
    evaluations = evaluate_budgets(
        model,
        texts.tokens,
        texts.contexts,
        budgets,
        hard=is_hard(options, model),
        batch_size=options.batch_size,
        progress=True,
        dense=options.dense,
        documents=texts.documents,
        others=options.contestants,
        folder=options.out,
    )
    if state.is_main_process:
        print(format_table(evaluations))
        print(f"\n{divergence_table(evaluations)}")
        if options.json is not None:
            rows = [asdict(x) | row for x, row in zip(evaluations, to_rows(evaluations), strict=True)]
            settings = {name: str(x) if isinstance(x, Path) else x for name, x in vars(options).items()}
            made_with = {"sol_hf": __version__, "processes": state.num_processes, **describe(model, texts.tokens)}
            against = [asdict(compare_with(evaluations, other.name)) for other in evaluations[0].opponents]
            shares = {name: gap_share(evaluations, name) for name in options.contestants if name.startswith("oracle")}
            found = {"settings": settings, "processes": state.num_processes, "made_with": made_with}
            found |= {"contexts": texts.contexts, "against": against, "gap_shares": shares, "evaluations": rows}
            write_json(options.json, found)
    return evaluations
