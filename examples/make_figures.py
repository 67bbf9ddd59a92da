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
import sys
from pathlib import Path

import torch
from accelerate import PartialState

from sol_hf.cli.inputs import SMOLLM2, budget_values, load_policy, read_blocks
from sol_hf.controllers.registry import CONTROLLERS
from sol_hf.evaluation.kv_pollution import ImpulseResponse, impulse_responses
from sol_hf.figures.drawing import draw_action_map, draw_pollution, draw_sweep


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


def measure_pollution(options: argparse.Namespace, model, tokenizer) -> list[ImpulseResponse]:
    """Impulse responses with and without KV refresh, by default to the cheapest action."""
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
    return responses


def main(arguments: list[str] | None = None) -> list[Path]:
    """Draws the requested figures; returns the files."""
    options = parse(arguments)
    files = draw_sweep(options.sweep, options.out) if options.sweep else []
    if options.action_map or options.texts:
        model, tokenizer = load_policy(options)
        model = model.to(PartialState(cpu=not torch.accelerator.is_available()).device)
        if options.action_map:
            text = options.action_map.read_text(encoding="utf-8").strip()
            files += draw_action_map(model, tokenizer, text, options.budget, options.controller, options.out)
        if options.texts:
            files += draw_pollution(measure_pollution(options, model, tokenizer), options.out)
    for path in files:
        print(path)
    return files


if __name__ == "__main__":
    main(sys.argv[1:])
