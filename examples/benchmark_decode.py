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

The variants take turns in every round, so that a machine that gets slower does so for all. `ms/token` and the shares
are medians over the rounds; `ratio` is the median of the quotients with the dense variant of the same round.
"""

import argparse
import functools
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

import sol_hf
from sol_hf import decoding
from sol_hf.smollm2 import ModelUnavailableError, fetch_smollm2


BUDGETS = ((0.5, 0.7, 8), (0.2, 0.5, 6))
NOTE = "Only ratios within a run mean anything: times depend on the machine and on what else it does."
COLUMNS = ("context", "rows", "variant", "ms/token", "ratio", "policy", "refresh", "rest")


class Stopwatch(BaseStreamer):
    """Notes when tokens arrive and from when to when parts of the work run.

    Examples:

    ```python
    watch = Stopwatch()
    base.generate(**inputs, streamer=watch)
    watch.ms_per_token(), watch.share("policy")
    ```
    """

    def __init__(self):
        self.times: list[float] = []
        self.spans: list[tuple[str, float, float]] = []

    def put(self, value: torch.Tensor) -> None:
        """Takes the prompt first, then one token per row at a time."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is left to do."""

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Books the time inside of the block as a part of the work."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.spans.append((name, begin, time.perf_counter()))

    @property
    def window(self) -> float:
        """Seconds from the first new token to the last."""
        return self.times[-1] - self.times[1]

    def ms_per_token(self) -> float:
        """Mean milliseconds of a decode step after the first new token."""
        return 1000 * self.window / (len(self.times) - 2)

    def share(self, name: str) -> float:
        """Share of the window that a part took."""
        return (
            sum(end - begin for part, begin, end in self.spans if part == name and begin > self.times[1]) / self.window
        )


class TimedController(sol_hf.Controller):
    """Another controller, whose calls are booked on a stopwatch."""

    def __init__(self, inner: sol_hf.Controller, watch: Stopwatch):
        self.inner, self.watch = inner, watch
        self.needs_budget = inner.needs_budget

    def __call__(self, observation: sol_hf.Observation) -> torch.Tensor:
        with self.watch.part("policy"):
            return self.inner(observation)


@contextmanager
def timed_refresh(watch: Stopwatch) -> Iterator[None]:
    """Books every KV refresh within the block on a stopwatch."""
    original = decoding.refresh

    @functools.wraps(original)
    def refresh(*args, **kwargs):
        with watch.part("refresh"):
            return original(*args, **kwargs)

    decoding.refresh = refresh
    try:
        yield
    finally:
        decoding.refresh = original


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
        shares = (f"{100 * share:.1f} %" for share in (self.policy, self.refresh, self.rest))
        numbers = (f"{self.ms_per_token:.2f}", f"{self.ratio:.3f}", *shares)
        return (str(self.context), str(self.rows), self.variant, *numbers)


def make_variants(model: sol_hf.SOLForCausalLM, controller: str, steps: int) -> dict[str, Callable]:
    """The generations to compare, by name; each takes generate's arguments and a stopwatch."""
    dense_schedule = torch.full((steps, 1), model.action_space.dense_id)

    def under(make_controller: Callable[[], sol_hf.Controller], **targets) -> Callable:
        def generate(watch: Stopwatch, **arguments):
            return model.generate(**arguments, **targets, controller=TimedController(make_controller(), watch))

        return generate

    makers = {
        "policy": lambda: sol_hf.PolicyController(model.policy),
        "fixed": lambda: sol_hf.FixedController(),
    }
    variants: dict[str, Callable] = {
        "dense": lambda watch, **arguments: model.base.generate(**arguments),
        "SOL, budget 1": lambda watch, **arguments: model.generate(**arguments, token_keep=1, mlp_keep=1, bits=16),
        "SOL, dense schedule": under(lambda: sol_hf.ScheduleController(dense_schedule)),
    }
    for budget in BUDGETS:
        targets = dict(zip(("token_keep", "mlp_keep", "bits"), budget, strict=True), budget_mode="hard")
        variants[f"SOL {budget}"] = under(makers[controller], **targets)
    return variants


def measure(generate: Callable, prompt: torch.Tensor, new_tokens: int) -> Stopwatch:
    """Runs one generation with `new_tokens` steps after the first new token."""
    watch, length = Stopwatch(), new_tokens + 1
    arguments = dict(input_ids=prompt, attention_mask=torch.ones_like(prompt), do_sample=False, streamer=watch)
    with timed_refresh(watch):
        generate(watch, **arguments, max_new_tokens=length, min_new_tokens=length)
    return watch


def summarise(context: int, rows: int, variant: str, watches: list[Stopwatch], dense: list[Stopwatch]) -> Result:
    """Medians over the rounds of a variant, next to the dense variant's rounds."""
    rounds = [watch.ms_per_token() for watch in watches]
    ratios = [mine / other.ms_per_token() for mine, other in zip(rounds, dense, strict=True)]
    policy, refresh = (statistics.median(w.share(part) for w in watches) for part in ("policy", "refresh"))
    rest = statistics.median(1 - w.share("policy") - w.share("refresh") for w in watches)
    ms_per_token, ratio = statistics.median(rounds), statistics.median(ratios)
    return Result(context, rows, variant, ms_per_token, ratio, policy, refresh, rest, rounds)


def benchmark(model: sol_hf.SOLForCausalLM, options: argparse.Namespace) -> list[Result]:
    """All variants at all contexts and batch sizes."""
    variants = make_variants(model, options.controller, options.new_tokens + 1)
    cases = [(context, rows) for context in options.contexts for rows in options.batch_sizes]
    vocabulary = model.config.base_vocab_size
    results: list[Result] = []
    with tqdm(total=len(variants) * (1 + options.repeats * len(cases)), unit="run") as bar:

        def run(name: str, prompt: torch.Tensor, new_tokens: int) -> Stopwatch:
            bar.set_description(f"{prompt.shape[1]} x {len(prompt)}, {name}")
            watch = measure(variants[name], prompt, new_tokens)
            bar.update()
            return watch

        for name in variants:  # so that the measured runs find everything warm
            run(name, torch.randint(vocabulary, (1, min(options.contexts))), 1)
        for context, rows in cases:
            prompt = torch.randint(vocabulary, (rows, context), generator=torch.Generator().manual_seed(0))
            watches: dict[str, list[Stopwatch]] = {name: [] for name in variants}
            for _ in range(options.repeats):
                for name in variants:
                    watches[name].append(run(name, prompt, options.new_tokens))
            results += [summarise(context, rows, name, watches[name], watches["dense"]) for name in variants]
    return results


def describe_machine(base: PreTrainedModel) -> dict[str, str | int]:
    """What the times depend on."""
    return {
        "processor": platform.machine(),
        "cores": os.cpu_count() or 1,
        "torch threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dtype": str(base.dtype).removeprefix("torch."),
    }


def show(results: list[Result]) -> None:
    """Prints the table, with rich if it is there."""
    lines = [result.cells() for result in results]
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        widths = [max(map(len, column)) for column in zip(COLUMNS, *lines, strict=True)]
        for line in (COLUMNS, *lines):
            print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
        return
    table = Table()
    for name in COLUMNS:
        table.add_column(name, justify="left" if name == "variant" else "right", no_wrap=True)
    for index, line in enumerate(lines):
        last_of_case = index + 1 < len(lines) and lines[index + 1][:2] != line[:2]
        table.add_row(*line, end_section=last_of_case)
    console = Console()
    (console if console.is_terminal else Console(width=100)).print(table)


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
    try:
        source = options.model or fetch_smollm2()
    except ModelUnavailableError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    dtype = getattr(torch, options.dtype)
    base = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, attn_implementation="sdpa").eval()
    positions = getattr(base.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if positions is not None and max(options.contexts) + options.new_tokens + 1 > positions:
        print(f"error: the model has {positions} positions, fewer than context and new tokens need", file=sys.stderr)
        return 2
    machine = describe_machine(base)
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    print(NOTE)
    results = benchmark(sol_hf.SOLForCausalLM.from_base(base), options)
    show(results)
    if options.json:
        settings = {name: value for name, value in vars(options).items() if name not in ("json", "model")}
        report = {"machine": machine, "settings": settings, "note": NOTE, "results": [asdict(r) for r in results]}
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
