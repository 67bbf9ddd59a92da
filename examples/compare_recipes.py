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
from pathlib import Path

from matplotlib.figure import Figure

from recipe_runs import RECIPES, evaluate, train
from sol_hf.cli.inputs import SMOLLM2


LABELS = {
    "published": "published recipe",
    "factored": "+ factored head",
    "prior": "+ budget prior",
    "warmup": "+ page fill, warmup on measured costs",
}


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
