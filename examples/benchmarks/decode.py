# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Times decode steps of a base alone and under budgets, all in one run, and prints one table.

    python examples/benchmarks/decode.py --model smollm2-135m --contexts 512 4096 --batch-sizes 1 8 \
        --budgets 1,1,16 .5,.5,16 .2,.4,16 --dtype float32 --json benchmark_decode.json

`--model` is `smollm2-135m` (downloaded once), a shape with random weights (`llama-3.2-1b`, `qwen3-4b`, `qwen3-8b`),
or a folder or hub id. `--policy FOLDER` uses a trained policy; the time is the same as with a fresh one. The variants:

    base                 the base's own `generate`, sdpa and DynamicCache
    own cache, dense     SOLCache, hooks and ledger under a schedule of dense actions: the gain of the cache alone
    (.5, .5, 16) ...     a hard budget (token_keep, mlp_keep, bits), chosen by the policy, KV refresh included

The context is processed once per case; every run decodes from a copy of that cache. With `--fill random` only its
first 64 tokens are processed. The keys and values after them are random, where each channel has the mean and standard
deviation of those 64. That takes seconds instead of minutes. The time of a step depends on keys only through the
chosen pages. With random keys the heads of a group choose different pages more often than on text. Contexts may then
be longer than a base with rotary positions supports.

A case that needs more memory than is available, as estimated by memory.py, is skipped; `--memory` sets the
available memory. After every case its lines are printed and the JSON is written.

A streamer records when new tokens arrive. The time from the first to the last is divided by the steps between them.
All rows get a token in a step, so `ms` is the time of one step. `speed-up` is the base's time divided by a variant's,
`own cache` that of the dense variant; both are medians over the rounds of the quotients within a round. The variants
run in turn, so that a slowdown of the machine affects all of them. `policy` and `refresh` are shares of the time. `MB`
is the minimum that a step has to read: weights, keys, values and page index under the budget, KV refresh included;
`bound` is the share of the time that the measured copy bandwidth needs for that. `cache MB` is the memory of keys,
values and page index.

`--clock cpu` with `--threads 1` measures processor time, for machines with other load.
"""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest.mock import patch

import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from machine import CLOCKS, NOTE, SHAPES, SMOLLM2, copy_bandwidth, describe_machine, load_base
from memory import copied_bytes, free_bytes, give_back, needed_bytes
from prompt import Prompt, RandomPrompt, UnfitBaseError
from sol_hf import Controller, FixedController, PolicyController, ScheduleController, SOLForCausalLM
from sol_hf.decoding import step as decoding
from sol_hf.execution.decoder_layers import decoder_layers
from sol_hf.execution.instrumentation import Instrumentation
from sol_hf.execution.mlp.discovery import find_mlps
from sol_hf.integrations.smollm2 import ModelUnavailableError
from stopwatch import Stopwatch, TimedController


COLUMNS = ("context", "rows", "variant", "ms", "speed-up", "own cache", "policy", "refresh", "MB", "bound", "cache MB")
WIDTHS = (7, 4, 22, 8, 8, 9, 6, 7, 6, 5, 8)
DENSE = "own cache, dense"
SETTINGS = ("model", "policy", "controller", "backend", "kv_refresh", "fill", "new_tokens")


@dataclass(frozen=True)
class Result:
    """One line of the table; shares are fractions of the time, `rounds` the milliseconds of every round."""

    context: int
    rows: int
    variant: str
    ms: float
    speed_up: float
    own_cache: float
    policy: float
    refresh: float
    megabytes: float
    bound: float
    cache_megabytes: float
    rounds: list[float]

    def cells(self) -> tuple[str, ...]:
        """The values of a table row, in the order of `COLUMNS`."""
        case = (str(self.context), str(self.rows), self.variant, f"{self.ms:.1f}")
        shares = (f"{100 * share:.1f}%" for share in (self.policy, self.refresh))
        ratios = (f"{self.speed_up:.2f}", f"{self.own_cache:.2f}")
        return *case, *ratios, *shares, f"{self.megabytes:.0f}", f"{self.bound:.0%}", f"{self.cache_megabytes:.0f}"


def make_variants(model: SOLForCausalLM, options: argparse.Namespace) -> dict[str, Callable]:
    """The generations to compare, by name; each takes a stopwatch, a prompt, and the arguments of generate."""
    dense = ScheduleController(torch.full((options.new_tokens + 2, 1), model.action_space.dense_id))
    chooser = FixedController() if options.controller == "fixed" else PolicyController(model.policy)

    def under(inner: Controller, budget: tuple[float, ...] | None) -> Callable:
        def run(watch: Stopwatch, prompt: Prompt, **kwargs):
            targets = {} if budget is None else dict(zip(("token_keep", "mlp_keep", "bits"), budget, strict=True))
            is_dense = budget is not None and budget == (1, 1, 16)
            cache = prompt.for_base() if is_dense else prompt.for_sol()
            controller = None if is_dense else TimedController(inner, watch)
            backend = None if is_dense else options.backend
            extra = dict(backend=backend, kv_refresh=options.kv_refresh, controller=controller)
            return model.generate(**kwargs, **targets, **extra, past_key_values=cache)

        return run

    def base(watch: Stopwatch, prompt: Prompt, **kwargs):
        return model.base.generate(**kwargs, past_key_values=prompt.for_base())

    budgets = {"({:g}, {:g}, {:g})".format(*budget): under(chooser, budget) for budget in options.budgets}
    return {"base": base, DENSE: under(dense, None), **budgets}


def measure(generate: Callable, prompt: Prompt, new_tokens: int, clock: str) -> Stopwatch:
    """Runs one generation with `new_tokens` steps after the first new token."""
    give_back()
    watch, length = Stopwatch(clock), new_tokens + 1
    arguments = dict(input_ids=prompt.ids, attention_mask=torch.ones_like(prompt.ids), do_sample=False, streamer=watch)
    with patch.object(decoding, "refresh", watch.timed("refresh", decoding.refresh)):
        generate(watch, prompt, **arguments, max_new_tokens=length, min_new_tokens=length)
    return watch


def bytes_to_read(
    base: PreTrainedModel, prompt: Prompt, budget: Sequence[float], page_size: int, refresh: int
) -> float:
    """Bytes of weights, keys, values and page index that a step under a budget has to read.

    Of every MLP the kept input channels of all products but the last; with `refresh` steps in an episode that is
    refreshed, a share of all weights but the LM head's, and of all keys and values.
    """
    token_keep, mlp_keep, _ = budget
    head = base.get_output_embeddings().weight.nbytes
    blocks = decoder_layers(base)
    layers = sum(p.nbytes for p in (base if blocks is None else blocks).parameters())
    by_input = sum(p.nbytes for mlp in find_mlps(base) for n, p in mlp.named_parameters() if "down" not in n)
    keys, values = prompt.cache_bytes
    index = 2 * keys / page_size if token_keep < 1 else 0
    step = head + layers - (1 - mlp_keep) * by_input + token_keep * (keys + values) + index
    sparse = token_keep < 1 or mlp_keep < 1 or budget[2] < 16
    return step + ((layers + keys + values) / refresh if refresh and sparse else 0)


def summarise(
    model: SOLForCausalLM, prompt: Prompt, rounds: Sequence[dict[str, Stopwatch]], options: argparse.Namespace
) -> list[Result]:
    """Medians over the rounds of a case, one result per variant."""
    results = []
    refresh = model.config.episode_length if options.kv_refresh is not False else 0
    for name in rounds[0]:
        watches = [watch[name] for watch in rounds]
        budget = options.budgets[list(rounds[0]).index(name) - 2] if name not in ("base", DENSE) else (1, 1, 16)
        needed = bytes_to_read(model.base, prompt, budget, model.config.page_size, refresh)
        ms = statistics.median(watch.ms for watch in watches)
        index = 2 * prompt.cache_bytes[0] / model.config.page_size if budget[0] < 1 else 0
        results.append(
            Result(
                context=prompt.ids.shape[1],
                rows=len(prompt.ids),
                variant=name,
                ms=ms,
                speed_up=statistics.median(watch["base"].ms / watch[name].ms for watch in rounds),
                own_cache=statistics.median(watch[DENSE].ms / watch[name].ms for watch in rounds),
                policy=statistics.median(watch.share("policy") for watch in watches),
                refresh=statistics.median(watch.share("refresh") for watch in watches),
                megabytes=needed / 1e6,
                bound=needed / options.bandwidth / (ms / 1000),
                cache_megabytes=(sum(prompt.cache_bytes) + index) / 1e6,
                rounds=[watch.ms for watch in watches],
            )
        )
    return results


@dataclass(frozen=True)
class Skipped:
    """A case that needs more memory than is available."""

    context: int
    rows: int
    needed_gb: float
    free_gb: float

    def __str__(self) -> str:
        case = f"{self.context:>{WIDTHS[0]}} {self.rows:>{WIDTHS[1]}}"
        return f"{case} skipped: needs about {self.needed_gb:.1f} GB, {self.free_gb:.1f} GB are free"


def find_skipped(base: PreTrainedModel, options: argparse.Namespace, context: int, rows: int) -> Skipped | None:
    """The case, if it needs too much memory; the base may be on the meta device."""
    needed = needed_bytes(base, options, context, rows) / 1e9
    free = free_bytes(options.device) / 1e9 if options.memory is None else options.memory
    return Skipped(context, rows, needed, free) if needed > free else None


def run_case(
    model: SOLForCausalLM, variants: dict[str, Callable], options: argparse.Namespace, context: int, rows: int
) -> list[Result]:
    """All variants at one context and batch size."""
    if not copied_bytes(model.base, options, rows):
        Instrumentation.of(model.base).drop_copies()
    if options.fill == "random":
        prompt: Prompt = RandomPrompt(model, context, rows, options.new_tokens + 1)
    else:
        prompt = Prompt(model, context, rows)
    with tqdm(total=len(variants) * (1 + options.repeats), unit="run", disable=None, leave=False) as bar:

        def run(name: str) -> Stopwatch:
            bar.set_description(f"{context} x {rows}, {name}")
            watch = measure(variants[name], prompt, options.new_tokens, options.clock)
            bar.update()
            return watch

        for name in variants:  # so that the measured runs find everything warm
            run(name)
        rounds = [{name: run(name) for name in variants} for _ in range(options.repeats)]
    return summarise(model, prompt, rounds, options)


def benchmark(load: Callable[[], SOLForCausalLM], base: PreTrainedModel, options: argparse.Namespace) -> None:
    """Measures all cases that fit into memory, prints and writes each when it is done.

    Args:
        load (`Callable`): Loads the model, which is done for the first case that fits.
        base (`PreTrainedModel`): The base or one of its shape, for the memory that it needs.
        options (`argparse.Namespace`): The command line, `bandwidth` and `machine`.
    """
    cases = [(context, rows) for context in options.contexts for rows in options.batch_sizes]
    results: list[Result] = []
    skipped: list[Skipped] = []
    model, variants = None, {}
    print(format_line(COLUMNS), flush=True)
    for done, (context, rows) in enumerate(cases, 1):
        too_large = find_skipped(base, options, context, rows)
        if too_large is not None:
            skipped.append(too_large)
            print(too_large, flush=True)
        else:
            if model is None:
                model = load()
                variants = make_variants(model, options)
            new = run_case(model, variants, options, context, rows)
            results += new
            print(*(format_line(result.cells()) for result in new), sep="\n", flush=True)
        write_report(options, results, skipped, complete=done == len(cases))


def format_line(cells: Sequence[str]) -> str:
    """A line of the table."""
    padded = zip(cells, WIDTHS, COLUMNS, strict=True)
    return " ".join(f"{cell:{'<' if name == 'variant' else '>'}{width}}" for cell, width, name in padded)


def write_report(
    options: argparse.Namespace, results: Sequence[Result], skipped: Sequence[Skipped], complete: bool
) -> None:
    """Write the numbers so far to a file, atomically."""
    if not options.json:
        return
    report = {"machine": options.machine, **{name: getattr(options, name) for name in SETTINGS}, "note": NOTE}
    report |= {"complete": complete, "results": [asdict(result) for result in results]}
    report["skipped"] = [asdict(case) for case in skipped]
    part = options.json.with_name(options.json.name + ".part")
    part.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    os.replace(part, options.json)


def parse_budget(text: str) -> tuple[float, ...]:
    """`token_keep,mlp_keep,bits` as numbers."""
    budget = tuple(float(part) for part in text.split(","))
    if len(budget) != 3:
        raise argparse.ArgumentTypeError(f"a budget is token_keep,mlp_keep,bits: {text}")
    return budget


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Time decode steps of a base alone and under budgets.")
    parser.add_argument("--model", default=SMOLLM2, help=f"{SMOLLM2}, {', '.join(SHAPES)}, or a folder or hub id")
    parser.add_argument("--policy", help="folder or hub id of a trained policy (default: a fresh one)")
    parser.add_argument("--contexts", type=int, nargs="+", default=[512, 4096], help="lengths of the prompt")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1])
    parser.add_argument("--fill", choices=("prompt", "random"), default="prompt", help="what caches are filled with")
    parser.add_argument("--memory", type=float, metavar="GB", help="of this process in all (default: what is free)")
    budgets = [(1.0, 1.0, 16.0), (0.5, 0.5, 16.0), (0.2, 0.4, 16.0)]
    parser.add_argument("--budgets", type=parse_budget, nargs="+", default=budgets, metavar="KEEP,KEEP,BITS")
    parser.add_argument("--new-tokens", type=int, default=32, help="timed decode steps of a run")
    parser.add_argument("--repeats", type=int, default=3, help="rounds over all variants")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--controller", choices=("fixed", "policy"), default="policy", help="what spends a budget")
    parser.add_argument("--backend", choices=("auto", "reference", "fast"), default="auto")
    refresh = {"yes": True, "no": False, "auto": "auto"}
    parser.add_argument("--kv-refresh", choices=tuple(refresh), default="yes")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall")
    parser.add_argument("--threads", type=int, help="of torch (default: as many as it takes)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers to this file")
    options = parser.parse_args(arguments)
    if min(*options.contexts, *options.batch_sizes, options.new_tokens, options.repeats) < 1:
        parser.error("contexts, batch sizes, new tokens and repeats must be at least 1")
    options.kv_refresh = refresh[options.kv_refresh]
    return options


def allow_positions(base: PreTrainedModel, options: argparse.Namespace) -> PreTrainedModel:
    """Give the base as many positions as the cases need.

    Raises:
        UnfitBaseError: if it does not support so many positions.
    """
    config = base.config.get_text_config(decoder=True)
    positions = getattr(config, "max_position_embeddings", None)
    needed = max(options.contexts) + options.new_tokens + 1
    if positions is not None and needed > positions:
        if options.fill != "random" or getattr(config, "rope_parameters", None) is None:
            raise UnfitBaseError(f"the model has {positions} positions, fewer than context and new tokens need")
        print(f"The model was made for {positions} positions; beyond them only its times mean anything.")
        config.max_position_embeddings = needed
    return base


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    options = parse_options(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    options.bandwidth = copy_bandwidth(options.device)
    options.machine = describe_machine(options.device) | {"dtype": options.dtype, "clock": options.clock}
    options.machine["copy bandwidth"] = f"{options.bandwidth / 1e9:.1f} GB/s"
    print(", ".join(f"{name} {value}" for name, value in options.machine.items()), NOTE, sep="\n")

    def load() -> SOLForCausalLM:
        loaded = base
        if base.device.type == "meta":
            loaded = allow_positions(load_base(options.model, options.dtype, options.device), options)
        if options.policy:
            return SOLForCausalLM.from_pretrained(options.policy, base=loaded)
        return SOLForCausalLM.from_base(loaded)

    try:
        # Of a shape the weights are made once a case is known to fit.
        base = load_base(options.model, options.dtype, "meta" if options.model in SHAPES else options.device)
        allow_positions(base, options)
        benchmark(load, base, options)
    except (ModelUnavailableError, UnfitBaseError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, ModelUnavailableError) else 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
