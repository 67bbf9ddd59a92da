# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""`sol-hf bench`: what is the fastest way to decode on this machine."""

import argparse
import sys
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..integrations.packaged_bases import NEED_NO_HUB
from ..integrations.smollm2 import SMOLLM2
from .arguments import DTYPES, at_least, rate


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..modeling_sol import SOLForCausalLM

CONTEXTS = (512, 4096)
MOST_QUALITY_CONTEXT = 512
"""Tokens of a text before the steps on which quality is measured, at most."""


def add_bench(commands: Any) -> None:
    """Add the command to a parser."""
    parser = commands.add_parser("bench", help="find the fastest way to decode on this machine")
    add = parser.add_argument
    add("model", nargs="?", default=SMOLLM2, help=f"folder or Hub id of a policy or of a base; default: {SMOLLM2}")
    add("--base", help=f"folder or Hub id of the base of a policy that does not name it; or {NEED_NO_HUB}")
    add("--contexts", type=at_least(2), nargs="+", help="tokens of the prompt; default: 512 and 4096, if they fit")
    add("--rows", type=at_least(1), nargs="+", default=[1], help="texts at once")
    add("--compute", type=rate, nargs="+", help="values for compute=, of a policy with a calibration: .5, quality:.02")
    add("--threads", type=at_least(1), help="of torch; default: what torch takes")
    add("--dtype", default="float32", choices=DTYPES, help="of the base")
    add("--steps", type=at_least(1), default=32, help="timed steps of a run; whole episodes have their KV refresh")
    add("--rounds", type=at_least(1), default=3, help="runs of every way, in turn")
    add("--clock", choices=("wall", "cpu"), default="wall", help="cpu: processor time, for a busy machine")
    add("--data", dest="texts", help="texts for prompts and quality, as for pareto; default: Python's manual")
    add("--text-column", default="text", help="column that holds the text")
    add("--blocks", type=at_least(0), default=4, help="texts on which quality is measured; 0: it is not")
    add("--most-kl", type=float, default=0.05, help="KL in nats a token up to which a way is advised")
    add("--json", type=Path, metavar="FILE", help="also write the numbers to a file")
    parser.set_defaults(run=run_bench)


def run_bench(options: argparse.Namespace) -> int:
    """Measure, print the table, and write the file.

    Args:
        options (`argparse.Namespace`): Of the subcommand.

    Raises:
        ValueError: for a model, contexts or texts that cannot be measured.
    """
    import torch

    from ..episodes.stored_files import write_json
    from ..evaluation.bench import measure_case, measure_quality, usable_ways
    from ..evaluation.bench_report import BenchReport
    from ..evaluation.bench_text import MANUAL, blocks_of, prompt_of, read_tokens

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    model, tokenizer, has_policy = load_model(options)
    contexts = _contexts(options, model)
    tokens = read_tokens(options.texts, options.text_column, tokenizer).to(model.device)
    context = min(MOST_QUALITY_CONTEXT, *contexts)
    blocks = blocks_of(tokens, options.blocks, context + model.config.episode_length + 1)
    ways, refused = usable_ways(model, _ways(options, model, has_policy))
    qualities, cases = {}, []
    if len(blocks):
        print(f"sol-hf: quality on {len(blocks)} texts", file=sys.stderr, flush=True)
        qualities = measure_quality(model, ways, blocks, context)
    for length, rows in product(contexts, options.rows):
        print(f"sol-hf: context {length}, rows {rows}", file=sys.stderr, flush=True)
        prompt = prompt_of(tokens, length, rows)
        cases.append(measure_case(model, ways, prompt, options.steps, options.rounds, options.clock))
    text = f"{options.blocks} blocks after {context} tokens of {options.texts or MANUAL}" if len(blocks) else ""
    name = Path(options.model).name or options.model
    report = BenchReport(name, _setting(options, model), text, options.most_kl, tuple(cases), qualities, refused)
    print(report)
    if options.json is not None:
        write_json(options.json, report.to_json())
    return 0


def load_model(options: argparse.Namespace) -> "tuple[SOLForCausalLM, PreTrainedTokenizerBase, bool]":
    """The model, its tokenizer, and whether it has a policy with a calibration.

    Raises:
        ValueError: for a model that is not here, or options that do not fit it.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from ..evaluation.ways import model_for_settings
    from ..integrations.packaged_bases import base_source
    from ..stored.hub_names import hub_id
    from .inputs import load_policy

    source = base_source(options.model)
    if not Path(source).is_dir() and hub_id(source) is None:
        raise ValueError(f"{source}: there is no such folder, and it is no id of a repository on the Hub.")
    if AutoConfig.from_pretrained(source).model_type != "sol":
        if options.base is not None:
            raise ValueError(f"{source} is a base, no policy: leave out --base.")
        base = AutoModelForCausalLM.from_pretrained(source, dtype=options.dtype).eval()
        model, tokenizer = model_for_settings(base), AutoTokenizer.from_pretrained(source)
    else:
        named = argparse.Namespace(policy=source, base=options.base, dtype=options.dtype)
        model, tokenizer = load_policy(named)
        if model.config.calibration is None:
            model = model_for_settings(model.base)
    has_policy = model.config.calibration is not None
    if options.compute and not has_policy:
        raise ValueError(f"--compute needs a policy with a calibration, which {source} has not.")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device), tokenizer, has_policy


def _ways(options: argparse.Namespace, model: "SOLForCausalLM", has_policy: bool) -> list:
    from ..evaluation.ways import ways_of_policy, ways_of_settings

    return ways_of_policy(model, options.compute) if has_policy else ways_of_settings(model)


def _contexts(options: argparse.Namespace, model: "SOLForCausalLM") -> list[int]:
    """The lengths of prompts that leave room for the steps.

    Raises:
        ValueError: if one that was given does not, or none of the default ones.
    """
    longest = model.config.base_max_position_embeddings
    room = None if longest is None else longest - options.steps - 1
    given = options.contexts or [context for context in CONTEXTS if room is None or context <= room]
    for context in given or [CONTEXTS[0]]:
        if room is not None and context > room:
            raise ValueError(
                f"The base has {longest} positions: with {options.steps} steps a prompt has at most {room} tokens, "
                f"not {context}. Give other --contexts."
            )
    return given


def _setting(options: argparse.Namespace, model: "SOLForCausalLM") -> str:
    import torch

    weight: torch.Tensor = model.base.get_input_embeddings().weight
    where = f"{torch.get_num_threads()} threads" if weight.device.type == "cpu" else torch.cuda.get_device_name()
    dtype = str(weight.dtype).removeprefix("torch.")
    clock = "" if options.clock == "wall" else ", processor time"
    return f"{dtype}, {where}, {options.steps} steps, {options.rounds} rounds{clock}"
