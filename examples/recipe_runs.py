# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The runs of `compare_recipes.py`: every recipe is trained for a time, and its snapshots are evaluated."""

import argparse
from pathlib import Path

import evaluate_policy
import train_grpo
from sol_hf.budget.axes import AXES
from sol_hf.episodes.stored_files import DamagedFileError, read_json, write_json
from sol_hf.evaluation.clusters import standard_error
from sol_hf.evaluation.policy_evaluation import PUBLISHED_NAMES
from timed_snapshots import Snapshots


CONFIG = Path(__file__).parent / "configs" / "smollm2-135m-published.yaml"
FACTORED = {"action_head": "factored"}
PRIOR = FACTORED | {"budget_prior": "true"}
WARMUP = PRIOR | {"observe_page_fill": "true"}
RECIPES = {"published": {}, "factored": FACTORED, "prior": PRIOR, "warmup": WARMUP}
BUDGETS = ((0.2, 0.5, 6), (0.3, 0.6, 7), (0.5, 0.7, 8), (0.7, 0.8, 9), (1, 0.6, 16))


def train(options: argparse.Namespace, recipe: str, seed: int) -> None:
    """One run, unless its results are in the folder; an error if they are of another run."""
    folder = options.out / f"{recipe}-{seed}"
    done = folder / "done.json"
    given = {"config": str(CONFIG), "train_file": options.train_file, "base": options.base, "dtype": options.dtype}
    given |= {
        "context_length": options.context_length,
        "output_dir": str(folder / "trainer"),
        "seed": seed,
        "streaming": "false",
    }
    given |= {"max_steps": 100_000, "save_strategy": "no", **RECIPES[recipe]}
    if recipe == "warmup":
        given |= {"warmup_dir": str(folder / "measured"), "warmup_blocks": options.warmup_blocks}
        given |= {"warmup_updates": options.warmup_updates, "warmup_practice_rounds": 2, "warmup_seed": seed}
        given |= {"warmup_practice_episodes": 128}
    arguments = [text for name, value in given.items() for text in (f"--{name}", str(value))]
    settings = {"minutes": options.minutes, "arguments": [*arguments, *options.others]}
    if done.exists():
        found = read_json(done, f"delete {folder} to run it again")
        if found.get("settings", settings) != settings:
            raise ValueError(f"{folder} holds a run with other arguments (see {done}): choose another --out.")
        return
    snapshots = Snapshots(folder, options.minutes * 60)
    trainer = train_grpo.main(settings["arguments"], callbacks=[snapshots])
    write_json(done, {"updates": trainer.state.global_step, "minutes": options.minutes, "settings": settings})


def is_evaluated(path: Path, options: argparse.Namespace) -> bool:
    """Whether a file has the evaluation that is asked for; files of earlier versions do not say."""
    if not path.exists():
        return False
    try:
        found = read_json(path, "the policy is evaluated again")
    except DamagedFileError as error:
        print(error)
        return False
    asked = {name: getattr(options, name) for name in ("base", "dtype", "blocks")}
    asked |= {"context_length": [options.context_length], "texts": options.valid_file}
    asked |= {"budgets": [list(budget) for budget in BUDGETS]}
    made_with = found.get("settings", asked)
    return "evaluations" in found and all(made_with.get(name) == value for name, value in asked.items())


def evaluate(options: argparse.Namespace, snapshot: Path) -> dict:
    """Gains of a snapshot over the fixed schedule, per budget and block; read from its file if that has them.

    Files of earlier versions do not name their axes; these are the published ones.
    """
    path = snapshot / "evaluation.json"
    if not is_evaluated(path, options):
        budgets = [",".join(map(str, budget)) for budget in BUDGETS]
        evaluate_policy.main(
            [str(snapshot), options.valid_file, "--base", options.base, "--dtype", options.dtype]
            + ["--blocks", str(options.blocks), "--context-length", str(options.context_length)]
            + ["--episodes", "1", "--soft"]  # as the policies are trained
            + ["--batch-size", "16", "--json", str(path), "--budgets", *budgets]
        )
    rows = read_json(path, "delete it")["evaluations"]
    gains = [[fixed - mine for fixed, mine in zip(r["fixed_losses"], r["losses"], strict=True)] for r in rows]
    per_block = [sum(column) / len(column) for column in zip(*gains, strict=True)]
    misses = [
        abs(got - asked) / AXES[axis].scale
        for row in rows
        for axis, got, asked in zip(row.get("axes", PUBLISHED_NAMES), row["realised"], row["requested"], strict=True)
    ]
    return {
        "gain": sum(per_block) / len(per_block),
        "gain_error": standard_error(per_block, rows[0].get("documents")),
        "budget_error": sum(misses) / len(misses),
        "gains": [sum(row) / len(row) for row in gains],
    }
