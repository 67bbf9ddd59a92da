# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Draws figures as PNG and SVG: those of a sweep, a text coloured by compute, the decay of KV pollution.

    python examples/make_figures.py runs/pareto --out docs/pictures
    python examples/make_figures.py --action-map examples/texts/tide.txt --out docs/pictures
    python examples/make_figures.py --pollution texts.jsonl.gz --blocks 32 --out docs/pictures

sweep folder   pareto, realised and random_search, from its tables; needs no model
--action-map   action_map, also as .html with the action of every token
--pollution    kv_pollution, and its numbers as .json

All of them can be drawn in one call. The last two use SmolLM2-135M-Instruct and the policy that is shipped for it,
unless `--policy` and `--base` are given.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from accelerate import PartialState

from sol_hf import make_controller
from sol_hf.cli.inputs import SMOLLM2, budget_values, load_policy, read_blocks
from sol_hf.controllers.registry import CONTROLLERS
from sol_hf.evaluation.kv_pollution import impulse_responses
from sol_hf.evaluation.sweep.table import read_table
from sol_hf.figures.action_map import map_actions, render_action_map
from sol_hf.figures.action_map_figure import plot_action_map
from sol_hf.figures.kv_pollution_figure import plot_impulse_responses
from sol_hf.figures.style import save_figure
from sol_hf.figures.sweep_figures import plot_pareto, plot_random_search, plot_realised


SHIPPED_POLICY = Path(__file__).parents[1] / "model_cards" / "sol-smollm2-135m"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sweep", nargs="?", type=Path, help="folder of a finished sweep")
    parser.add_argument("--out", type=Path, required=True, help="folder for the figures")
    parser.add_argument("--policy", default=str(SHIPPED_POLICY), help="folder or Hub id of a policy")
    parser.add_argument("--base", help=f"Hub id or folder of its base; {SMOLLM2} needs no Hub, see smollm2.py")
    parser.add_argument("--dtype", default="float32", help="of the base: auto, float32, bfloat16 or float16")
    colours = parser.add_argument_group("action map")
    colours.add_argument("--action-map", type=Path, metavar="FILE", help="a plain text to read under the budget")
    colours.add_argument(
        "--budget", type=budget_values, default=(0.5, 0.7, 8.0), help="one number per axis of the policy"
    )
    colours.add_argument("--controller", choices=list(CONTROLLERS), default="policy", help="what spends it")
    impulse = parser.add_argument_group("KV pollution")
    impulse.add_argument(
        "--pollution", dest="texts", metavar="FILE", help="texts: .jsonl, .txt, .csv, also .gz; .parquet"
    )
    impulse.add_argument("--text-column", default="text", help="column that holds the text")
    impulse.add_argument(
        "--actions", type=budget_values, nargs="+", help="action of the disturbed steps, one number per axis"
    )
    impulse.add_argument("--blocks", type=int, default=32, help="blocks to average over")
    impulse.add_argument("--context-length", type=int, default=256, help="tokens of a block before its first step")
    impulse.add_argument("--steps", type=int, default=40, help="steps of a block")
    impulse.add_argument("--disturbed", type=int, nargs=2, default=(2, 4), metavar=("BEGIN", "LENGTH"))
    impulse.add_argument("--batch-size", type=int, default=8, help="blocks that run at the same time")
    options = parser.parse_args(arguments)
    if options.base is None and options.policy == str(SHIPPED_POLICY):
        options.base = SMOLLM2
    if options.sweep is None and options.action_map is None and options.texts is None:
        parser.error("there is nothing to draw: give the folder of a sweep, --action-map or --pollution")
    return options


def draw_sweep(folder: Path, out: Path) -> list[Path]:
    """Figures of a sweep; that of the random schedules only if the sweep has some."""
    rows, blocks, trials = (list(read_table(folder, name)) for name in ("sweep", "blocks", "trials"))
    files = save_figure(plot_pareto(rows, blocks), out / "pareto")
    files += save_figure(plot_realised(rows), out / "realised")
    return files + (save_figure(plot_random_search(rows, trials), out / "random_search") if trials else [])


def draw_action_map(options: argparse.Namespace, model, tokenizer) -> list[Path]:
    """The map of a text, as figure and as page."""
    text = options.action_map.read_text(encoding="utf-8").strip()
    controller = make_controller(options.controller, model)
    found = map_actions(model, tokenizer, text, options.budget, controller=controller, name=options.controller)
    files, page = save_figure(plot_action_map(found), options.out / "action_map"), options.out / "action_map.html"
    page.write_text(render_action_map(found), encoding="utf-8")
    return [*files, page]


def draw_pollution(options: argparse.Namespace, model, tokenizer) -> list[Path]:
    """Impulse responses with and without KV refresh, by default to the cheapest action; the figure and its numbers."""
    blocks = read_blocks(options, model, tokenizer, options.steps)
    cheapest = tuple(min(levels) for levels in model.action_space.levels.values())
    begin, length = options.disturbed
    responses = impulse_responses(
        model,
        blocks.tokens,
        options.context_length,
        options.actions or [cheapest],
        begin,
        length,
        batch_size=options.batch_size,
        progress=True,
        documents=blocks.documents,
    )
    for response in responses:
        during, after = response.aftermath
        how = "without" if response.refresh_every is None else "with"
        print(f"{response.action}, {how} refresh: KL {during:.3f} while disturbed, {after:.4f} after; ", end="")
        print(f"below a tenth after {response.lasting(0.1)} steps, below a hundredth after {response.lasting(0.01)}")
    files = save_figure(plot_impulse_responses(responses), options.out / "kv_pollution")
    numbers = options.out / "kv_pollution.json"
    numbers.write_text(json.dumps([row for x in responses for row in x.to_rows()], indent=1), encoding="utf-8")
    return [*files, numbers]


def main(arguments: list[str] | None = None) -> list[Path]:
    """Draws the requested figures; returns the files."""
    options = parse(arguments)
    files = draw_sweep(options.sweep, options.out) if options.sweep else []
    if options.action_map or options.texts:
        model, tokenizer = load_policy(options)
        model = model.to(PartialState(cpu=not torch.accelerator.is_available()).device)
        if options.action_map:
            files += draw_action_map(options, model, tokenizer)
        if options.texts:
            files += draw_pollution(options, model, tokenizer)
    for path in files:
        print(path)
    return files


if __name__ == "__main__":
    main(sys.argv[1:])
