# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Draws the learning curve of a policy: its gain over the fixed schedule at every saved copy.

    python examples/learning_curve.py valid.jsonl.gz policies/smollm2-135m-measured/update-* --out learning_curve

Copies are saved with `warmup_save_every`, and as checkpoints of the trainer; the last number in the name of a folder
is the number of updates. `learning_curve.json` has the numbers. Copies that were evaluated before are not evaluated
again.
"""

import argparse
import json
import re
import sys
from pathlib import Path

from matplotlib.figure import Figure

import recipe_runs
from sol_hf.cli.inputs import SMOLLM2


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("valid_file", help="texts to evaluate on")
    parser.add_argument("policies", type=Path, nargs="+", help="folders of policies, each with a number in its name")
    parser.add_argument("--out", type=Path, required=True, help="files of figures and curve, without suffix")
    parser.add_argument("--blocks", type=int, default=256, help="validation blocks")
    parser.add_argument("--context-length", type=int, default=256, help="tokens of a block before its episode")
    parser.add_argument("--dtype", default="bfloat16", help="of the base")
    parser.add_argument("--base", default=SMOLLM2, help="Hub id or folder of the base")
    return parser.parse_args(arguments)


def updates(folder: Path) -> int:
    """The last number in a folder's name."""
    numbers = re.findall(r"\d+", folder.name)
    if not numbers:
        raise ValueError(
            f"The name of {folder} has no number in it, which would say after how many updates it was kept."
        )
    return int(numbers[-1])


def draw(points: list[dict], path: Path) -> None:
    """Gain at every budget against updates, and their mean."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    x = [point["updates"] for point in points]
    for number, budget in enumerate(recipe_runs.BUDGETS):
        gains = [point["gains"][number] for point in points]
        axes.plot(x, gains, color=f"C{number}", marker="o", ms=3, label=" / ".join(f"{x:g}" for x in budget))
    errors = [point["gain_error"] for point in points]
    style = {"color": "black", "linewidth": 2, "capsize": 3, "label": "mean, ± standard error over blocks"}
    axes.errorbar(x, [point["gain"] for point in points], errors, **style)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xlabel("updates")
    axes.set_ylabel("gain over the fixed schedule\nat the same cost (nats a token)")
    axes.legend(frameon=False, fontsize=9, title="token_keep / mlp_keep / bits", title_fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    for suffix in (".png", ".svg"):
        figure.savefig(path.with_suffix(suffix), dpi=150)


def main(arguments: list[str] | None = None) -> list[dict]:
    """Evaluates, draws, and returns the points of the curve."""
    options = parse(arguments)
    folders = sorted(options.policies, key=updates)
    points = [{"updates": updates(folder)} | recipe_runs.evaluate(options, folder) for folder in folders]
    options.out.with_suffix(".json").write_text(json.dumps(points, indent=1), encoding="utf-8")
    draw(points, options.out)
    return points


if __name__ == "__main__":
    main(sys.argv[1:])
