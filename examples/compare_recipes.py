# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Trains the same policy by four recipes for the same time, and draws the gain of each against time.

Time is processor time, so that other load on the machine does not matter. With one thread (`OMP_NUM_THREADS=1`) on an
idle machine it equals elapsed time.

    python examples/compare_recipes.py train.jsonl.gz valid.jsonl.gz --minutes 12 --seeds 0 1 --out recipes

published   the published network and GRPO, from random weights
factored    + a head that is factored over the axes
prior       + a budget prior: the untrained policy is the fixed schedule
warmup      + the fill of the page as an input of the policy, and `CounterfactualWarmup` first: the time is divided
            among measuring, fitting and GRPO

Runs and evaluations that are in the folder are not repeated. `recipes.json` has the numbers, `recipes.png` and
`recipes.svg` the curves. Further options are passed to `train_grpo.py`, for all recipes. To run recipes in parallel,
start a process with its own `--recipes` for each, and then one with all of them and `--draw`.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from matplotlib.figure import Figure
from transformers import TrainerCallback

import evaluate_policy
import train_grpo
from sol_hf.budget.axes import AXES
from sol_hf.cli.inputs import SMOLLM2
from sol_hf.episodes.stored_files import DamagedFileError, read_json, write_json
from sol_hf.evaluation.clusters import standard_error
from sol_hf.evaluation.policy_evaluation import PUBLISHED_NAMES


CONFIG = Path(__file__).parent / "configs" / "smollm2-135m-published.yaml"
FACTORED = {"action_head": "factored"}
PRIOR = FACTORED | {"budget_prior": "true"}
WARMUP = PRIOR | {"observe_page_fill": "true"}
RECIPES = {"published": {}, "factored": FACTORED, "prior": PRIOR, "warmup": WARMUP}
LABELS = {
    "published": "published recipe",
    "factored": "+ factored head",
    "prior": "+ budget prior",
    "warmup": "+ page fill, warmup on measured costs",
}
BUDGETS = ((0.2, 0.5, 6), (0.3, 0.6, 7), (0.5, 0.7, 8), (0.7, 0.8, 9), (1, 0.6, 16))
SNAPSHOTS = 3


class Snapshots(TrainerCallback):
    """Saves the policy at equal intervals of time, and ends the training when the time is over.

    Args:
        folder (`Path`): Gets one folder per snapshot, named by the milliseconds since the start.
        seconds (`float`): Total time from now on.
    """

    def __init__(self, folder: Path, seconds: float):
        self.folder, self.seconds, self.start = folder, seconds, time.process_time()
        self.marks = [seconds * (number + 1) / SNAPSHOTS for number in range(SNAPSHOTS)]

    def save(self, model) -> None:
        """Save the policy now."""
        model.save_pretrained(self.folder / f"{1000 * (time.process_time() - self.start):09.0f}")

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        """Save the policy before GRPO."""
        self.save(model)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        """Save when a mark has passed, stop after the last."""
        passed = [mark for mark in self.marks if time.process_time() - self.start >= mark]
        if passed:
            self.marks = self.marks[len(passed) :]
            self.save(model)
        control.should_training_stop = not self.marks


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("train_file", help="texts to train on")
    parser.add_argument("valid_file", help="texts to evaluate on")
    parser.add_argument("--out", type=Path, required=True, help="folder of runs, figures and curves")
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--minutes", type=float, default=12, help="processor time of a run, measuring included")
    parser.add_argument("--warmup-blocks", type=int, default=80, help="blocks to measure: about a third of the time")
    parser.add_argument("--warmup-updates", type=int, default=300, help="updates of the fit")
    parser.add_argument("--blocks", type=int, default=64, help="validation blocks")
    parser.add_argument("--context-length", type=int, default=256, help="tokens of a block before its episode")
    parser.add_argument("--dtype", default="bfloat16", help="of the base")
    parser.add_argument("--base", default=SMOLLM2, help="Hub id or folder of the base")
    parser.add_argument("--draw", action="store_true", help="train nothing: evaluate and draw what is there")
    options, options.others = parser.parse_known_args(arguments)
    return options


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


def draw(curves: dict[str, list[list[dict]]], path: Path) -> None:
    """Gain and budget error against time: a line per seed."""
    figure = Figure(figsize=(7, 6.5), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    for number, (recipe, runs) in enumerate(curves.items()):
        for index, run in enumerate(runs):
            minutes, style = [point["minutes"] for point in run], {"color": f"C{number}", "marker": "o", "ms": 4}
            errors = [point["gain_error"] for point in run]
            label = LABELS[recipe] if index == 0 else None
            top.errorbar(minutes, [point["gain"] for point in run], errors, capsize=2, label=label, **style)
            bottom.plot(minutes, [point["budget_error"] for point in run], **style)
    top.axhline(0, color="black", linewidth=0.8)
    top.set_ylabel("gain over the fixed schedule\nat the same cost (nats a token)")
    bottom.set_ylabel("|spent - budget|, mean over axes")
    bottom.set_xlabel("processor minutes of training, measuring included")
    bottom.set_ylim(bottom=0)
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    for axes in (top, bottom):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    for suffix in (".png", ".svg"):
        figure.savefig(path.with_suffix(suffix), dpi=150)


def main(arguments: list[str] | None = None) -> dict[str, list[list[dict]]]:
    """Trains, evaluates, draws; returns per recipe and seed the points of its curve."""
    options = parse(arguments)
    if not options.draw:
        for seed in options.seeds:
            for recipe in options.recipes:
                train(options, recipe, seed)
    curves = {}
    for recipe in options.recipes:
        runs = [options.out / f"{recipe}-{seed}" for seed in options.seeds]
        snapshots = [sorted(path for path in run.iterdir() if path.name.isdigit()) for run in runs]
        curves[recipe] = [
            [{"minutes": int(snapshot.name) / 60_000} | evaluate(options, snapshot) for snapshot in some]
            for some in snapshots
        ]
    (options.out / "recipes.json").write_text(json.dumps(curves, indent=1), encoding="utf-8")
    draw(curves, options.out / "recipes")
    for recipe, runs in curves.items():
        for run in runs:
            last = run[-1]
            print(f"{recipe:10} {last['gain']:+.3f} ± {last['gain_error']:.3f}, misses by {last['budget_error']:.3f}")
    return curves


if __name__ == "__main__":
    main(sys.argv[1:])
