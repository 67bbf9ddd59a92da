# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
"""`sol-hf figures`: those of sweeps, a text coloured by compute, the decay of KV pollution, as PNG and SVG.

sweep folder   pareto, realised and random_search, from its tables; needs no model
--bytes-front  bytes_front, of several sweeps; needs no model
--action-map   action_map, also as .html with the action of every token
--pollution    kv_pollution, and its numbers as .json

All of them can be drawn in one call.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..integrations.packaged_bases import NEED_NO_HUB
from .arguments import budget_values


if TYPE_CHECKING:
    from ..evaluation.kv_pollution import ImpulseResponse

ABOUT = "Draw figures as PNG and SVG: those of a sweep, a text coloured by compute, the decay of KV pollution."
EXAMPLE = "Example: sol-hf figures --action-map texts.txt --policy my-policy --budget 0.5,0.6,8 --out pictures"


def named_folder(text: str) -> tuple[str, Path]:
    """`NAME=FOLDER` as a pair."""
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise argparse.ArgumentTypeError(f"{text!r} is no NAME=FOLDER")
    return name, Path(folder)


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    own = argparse.ArgumentParser(prog="sol-hf figures", description=ABOUT, epilog=EXAMPLE)
    own.add_argument("sweep", nargs="?", type=Path, help="folder of a finished sweep")
    own.add_argument("--out", type=Path, required=True, help="folder for the figures")
    own.add_argument(
        "--bytes-front", type=named_folder, nargs="+", metavar="NAME=FOLDER", help="finished sweeps in one figure"
    )
    own.add_argument("--policy", help="folder or Hub id of a policy, for --action-map and --pollution")
    own.add_argument("--base", help=f"Hub id or folder of its base; or {NEED_NO_HUB}")
    own.add_argument("--dtype", default="float32", help="of the base: auto, float32, bfloat16 or float16")
    colours = own.add_argument_group("action map")
    colours.add_argument("--action-map", type=Path, metavar="FILE", help="a plain text to read under the budget")
    colours.add_argument(
        "--budget",
        type=budget_values,
        default=(0.5, 0.7, 8.0),
        help="one number per axis of the policy, such as 0.5,0.7,8",
    )
    colours.add_argument("--controller", default="policy", help="what spends it")
    impulse = own.add_argument_group("KV pollution")
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
    impulse.add_argument(
        "--disturbed", type=int, nargs=2, default=(2, 4), metavar=("BEGIN", "LENGTH"), help="which steps are disturbed"
    )
    impulse.add_argument("--batch-size", type=int, default=8, help="blocks that run at the same time")
    return own


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Options of the command line."""
    options = parser().parse_args(arguments)
    if not (options.sweep or options.bytes_front or options.action_map or options.texts):
        parser().error(
            "there is nothing to draw: give the folder of a sweep, --bytes-front, --action-map or --pollution"
        )
    if options.policy is None and (options.action_map or options.texts):
        parser().error("--action-map and --pollution need a --policy")
    return options


def measure_pollution(options: argparse.Namespace, model, tokenizer) -> "list[ImpulseResponse]":
    """Impulse responses with and without KV refresh, by default to the cheapest action."""
    from ..evaluation.kv_pollution import impulse_responses
    from .inputs import read_blocks

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
    import torch
    from accelerate import PartialState

    from ..figures.drawing import draw_action_map, draw_bytes_front, draw_pollution, draw_sweep
    from .inputs import load_policy

    files = draw_sweep(options.sweep, options.out) if options.sweep else []
    if options.bytes_front:
        files += draw_bytes_front(dict(options.bytes_front), options.out)
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
