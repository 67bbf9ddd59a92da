# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Times decode steps of a base alone and under SOL, all in one run on the CPU, and prints one table.

    python examples/benchmark_decode.py --contexts 256 1024 4096 --batch-sizes 1 8 --new-tokens 32 --repeats 3 \
        --dtype float32 --controller policy --json benchmark_decode.json

Without `--model` it takes SmolLM2-135M-Instruct, downloaded once. The policy is a fresh one: its choices mean nothing,
its cost is that of a trained one. Five variants are timed:

    dense                       the base's own `generate`, with sdpa and its own cache
    SOL, budget 1               `generate(token_keep=1, mlp_keep=1, bits=16)`, which takes the short cut to the base
    SOL, dense schedule         SOLCache, hooks and attention twin, but every action is the dense one
    SOL (0.5, 0.7, 8) and (0.2, 0.5, 6)     the whole path under a hard budget (token_keep, mlp_keep, bits)

Only decoding counts: a streamer notes when every new token arrives, and the time from the first one (which ends the
prefill) to the last one is divided by the steps between them. Taking a measured prefill off the time of a whole
generation would instead leave the noise of two long prefills in a short difference. All rows of a batch get a token in
a step, so `ms/token` is the time of one step. The time inside of the controller and of the KV refresh is measured in
the same window; the rest is the base with hooks, key selection and bookkeeping.

The variants take turns in every round, so that a machine that gets slower does so for all. `ms/token`, `policy` and
`refresh` are medians over the rounds; `ratio` is the median of the quotients with the same round's dense variant.
"""

import argparse
import functools
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest.mock import patch

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM
from transformers.generation.streamers import BaseStreamer

from sol_hf import Controller, FixedController, PolicyController, ScheduleController, SOLForCausalLM, decoding
from sol_hf.smollm2 import ModelUnavailableError, fetch_smollm2


BUDGETS = ((0.5, 0.7, 8), (0.2, 0.5, 6))
NOTE = "Only ratios within a run mean anything: times depend on the machine and on what else it does."
COLUMNS = ("context", "rows", "variant", "ms/token", "ratio", "policy", "refresh", "rest")


class Stopwatch(BaseStreamer):
    """Notes when tokens arrive, and from when to when parts of the work run."""

    def __init__(self):
        self.times: list[float] = []
        self.spans: list[tuple[str, float, float]] = []

    def put(self, value: torch.Tensor) -> None:
        """Takes the prompt first, then one token per row at a time."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is left to do."""

    def timed(self, part: str, function: Callable) -> Callable:
        """`function`, whose calls are booked as a part of the work."""

        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            begin = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.spans.append((part, begin, time.perf_counter()))

        return wrapper

    @property
    def ms_per_token(self) -> float:
        """Mean milliseconds of a decode step after the first new token."""
        return 1000 * (self.times[-1] - self.times[1]) / (len(self.times) - 2)

    def share(self, part: str) -> float:
        """Share of the same time that a part took."""
        inside = [end - begin for name, begin, end in self.spans if name == part and begin > self.times[1]]
        return sum(inside) / (self.times[-1] - self.times[1])


class TimedController(Controller):
    """Another controller, whose calls are booked on a stopwatch as the part `policy`."""

    def __init__(self, inner: Controller, watch: Stopwatch):
        self.needs_budget = inner.needs_budget
        self.call = watch.timed("policy", inner.__call__)

    def __call__(self, observation) -> torch.Tensor:
        return self.call(observation)


@dataclass(frozen=True)
class Result:
    """One line of the table; shares are fractions of the time, `rounds` the milliseconds of every round."""

    context: int
    rows: int
    variant: str
    ms_per_token: float
    ratio: float
    policy: float
    refresh: float
    rest: float
    rounds: list[float]

    def cells(self) -> tuple[str, ...]:
        """What the table shows, in the order of `COLUMNS`."""
        shares = (f"{100 * share:.1f}%" for share in (self.policy, self.refresh, self.rest))
        case = (str(self.context), str(self.rows), self.variant)
        return *case, f"{self.ms_per_token:.2f}", f"{self.ratio:.3f}", *shares


def make_variants(model: SOLForCausalLM, controller: str, steps: int) -> dict[str, Callable]:
    """The generations to compare, by name; each takes a stopwatch and the arguments of generate."""
    dense_schedule = ScheduleController(torch.full((steps, 1), model.action_space.dense_id))
    chooser = FixedController() if controller == "fixed" else PolicyController(model.policy)

    def under(inner: Controller, **targets) -> Callable:
        return lambda watch, **kwargs: model.generate(**kwargs, **targets, controller=TimedController(inner, watch))

    variants: dict[str, Callable] = {
        "dense": lambda watch, **kwargs: model.base.generate(**kwargs),
        "SOL, budget 1": lambda watch, **kwargs: model.generate(**kwargs, token_keep=1, mlp_keep=1, bits=16),
        "SOL, dense schedule": under(dense_schedule),
    }
    for token_keep, mlp_keep, bits in BUDGETS:
        targets = dict(token_keep=token_keep, mlp_keep=mlp_keep, bits=bits, budget_mode="hard")
        variants[f"SOL ({token_keep}, {mlp_keep}, {bits})"] = under(chooser, **targets)
    return variants


def measure(generate: Callable, prompt: torch.Tensor, new_tokens: int) -> Stopwatch:
    """Runs one generation with `new_tokens` steps after the first new token."""
    watch, length = Stopwatch(), new_tokens + 1
    arguments = dict(input_ids=prompt, attention_mask=torch.ones_like(prompt), do_sample=False, streamer=watch)
    with patch.object(decoding, "refresh", watch.timed("refresh", decoding.refresh)):
        generate(watch, **arguments, max_new_tokens=length, min_new_tokens=length)
    return watch


def summarise(case: tuple[int, int, str], watches: Sequence[Stopwatch], dense: Sequence[Stopwatch]) -> Result:
    """Medians over the rounds of a case (context, rows, variant), next to the dense variant's rounds."""
    rounds = [watch.ms_per_token for watch in watches]
    ratios = [mine / other.ms_per_token for mine, other in zip(rounds, dense, strict=True)]
    policy, refresh = (statistics.median(w.share(part) for w in watches) for part in ("policy", "refresh"))
    times = statistics.median(rounds), statistics.median(ratios)
    return Result(*case, *times, policy, refresh, 1 - policy - refresh, rounds)


def benchmark(model: SOLForCausalLM, options: argparse.Namespace) -> list[Result]:
    """All variants at all contexts and batch sizes."""
    variants = make_variants(model, options.controller, options.new_tokens + 1)
    cases = [(context, rows) for context in options.contexts for rows in options.batch_sizes]
    results = []
    with tqdm(total=len(variants) * (1 + options.repeats * len(cases)), unit="run") as bar:

        def run(name: str, prompt: torch.Tensor, new_tokens: int) -> Stopwatch:
            bar.set_description(f"{prompt.shape[1]} x {len(prompt)}, {name}")
            watch = measure(variants[name], prompt, new_tokens)
            bar.update()
            return watch

        for name in variants:  # so that the measured runs find everything warm
            run(name, torch.ones(1, min(options.contexts), dtype=torch.long), 1)
        for context, rows in cases:
            seeded = torch.Generator().manual_seed(0)
            prompt = torch.randint(model.config.base_vocab_size, (rows, context), generator=seeded)
            rounds = [[run(name, prompt, options.new_tokens) for name in variants] for _ in range(options.repeats)]
            for name, watches in zip(variants, zip(*rounds, strict=True), strict=True):
                results.append(summarise((context, rows, name), watches, [first for first, *_ in rounds]))
    return results


def describe_machine() -> dict[str, str | int]:
    """What the times depend on, next to the dtype."""
    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    return {"processor": platform.machine(), "cores": cores, "torch threads": threads, "torch": torch.__version__}


def show(results: list[Result]) -> None:
    """Prints the table, with rich if it is there."""
    lines = [result.cells() for result in results]
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        for line in (COLUMNS, *lines):
            print("{:>7} {:>4} {:<20} {:>8} {:>6} {:>7} {:>7} {:>7}".format(*line))
        return
    table = Table()
    for name in COLUMNS:
        table.add_column(name, justify="left" if name == "variant" else "right", no_wrap=True)
    for line in lines:
        table.add_row(*line)
    Console(width=None if sys.stdout.isatty() else 100).print(table)


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Time decode steps of a base alone and under SOL.")
    parser.add_argument("--model", help="folder or hub id of a causal LM (default: SmolLM2-135M-Instruct)")
    parser.add_argument("--contexts", type=int, nargs="+", default=[256, 1024, 4096], help="lengths of the prompt")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--new-tokens", type=int, default=32, help="timed decode steps of a run")
    parser.add_argument("--repeats", type=int, default=3, help="rounds over all variants")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--controller", choices=("fixed", "policy"), default="policy", help="what spends a budget")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers to this file")
    options = parser.parse_args(arguments)
    if min(*options.contexts, *options.batch_sizes, options.new_tokens, options.repeats) < 1:
        parser.error("contexts, batch sizes, new tokens and repeats must be at least 1")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    options = parse_options(arguments)
    machine = describe_machine() | {"dtype": options.dtype}
    print(", ".join(f"{name} {value}" for name, value in machine.items()), NOTE, sep="\n")
    try:
        source = options.model or fetch_smollm2()
    except ModelUnavailableError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    base = AutoModelForCausalLM.from_pretrained(source, dtype=options.dtype, attn_implementation="sdpa").eval()
    positions = getattr(base.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if positions is not None and max(options.contexts) + options.new_tokens + 1 > positions:
        print(f"error: the model has {positions} positions, fewer than context and new tokens need", file=sys.stderr)
        return 2
    results = benchmark(SOLForCausalLM.from_base(base), options)
    show(results)
    if options.json:
        report = {"machine": machine, "controller": options.controller, "new_tokens": options.new_tokens, "note": NOTE}
        report["results"] = [asdict(result) for result in results]
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
