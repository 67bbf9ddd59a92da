# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Times decode steps of a base alone and under budgets, all in one run, and prints one table.

    python examples/benchmark_decode.py --model smollm2-135m --contexts 512 4096 --batch-sizes 1 8 \
        --budgets 1,1,16 .5,.5,16 .2,.4,16 --dtype float32 --json benchmark_decode.json

`--model` is `smollm2-135m` (downloaded once), a shape with random weights (`llama-3.2-1b`, `qwen3-4b`, `qwen3-8b`),
or a folder or hub id. `--policy FOLDER` takes a trained policy; a fresh one costs the same. The variants:

    base                 the base's own `generate`, sdpa and DynamicCache
    own cache, dense     SOLCache, hooks and ledger under a schedule of dense actions: what the cache alone gains
    (.5, .5, 16) ...     a hard budget (token_keep, mlp_keep, bits), chosen by the policy, KV refresh included

The context is processed once per case; every run decodes from a copy of that cache. A streamer notes when new tokens
arrive, and the time from the first to the last is divided by the steps between them. All rows get a token in a step,
so `ms` is the time of one step. `speed-up` is the base's time over a variant's, `own cache` that of the dense
variant: medians over the rounds of the quotients within a round. The variants take turns, so that a machine that gets
slower does so for all. `policy` and `refresh` are shares of the time. `MB` is what a step has to read at least:
weights, keys, values and page index as the budget asks, KV refresh included; `bound` the share of the time that the
measured copy bandwidth needs for that. `cache MB` is the memory of keys, values and page index.

`--clock cpu` with `--threads 1` counts processor time, for machines that do other things as well.
"""

import argparse
import copy
import functools
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest.mock import patch

import torch
from tqdm import tqdm
from transformers import DynamicCache, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from benchmark_machine import CLOCKS, NOTE, SHAPES, SMOLLM2, copy_bandwidth, describe_machine, load_base, show
from sol_hf import Controller, FixedController, PolicyController, ScheduleController, SOLForCausalLM, decoding
from sol_hf.crossover import measured_choices
from sol_hf.elastic import decoder_layers, find_mlps
from sol_hf.paged_layer import PagedLayer
from sol_hf.smollm2 import ModelUnavailableError


COLUMNS = ("context", "rows", "variant", "ms", "speed-up", "own cache", "policy", "refresh", "MB", "bound", "cache MB")
DENSE = "own cache, dense"


class Stopwatch(BaseStreamer):
    """Notes when tokens arrive, and from when to when parts of the work run."""

    def __init__(self, clock: str = "wall"):
        self.read = CLOCKS[clock]
        self.times: list[float] = []
        self.spans: list[tuple[str, float, float]] = []

    def put(self, value: torch.Tensor) -> None:
        """Takes the prompt first, then one token per row at a time."""
        self.times.append(self.read())

    def end(self) -> None:
        """Nothing is left to do."""

    def timed(self, part: str, function: Callable) -> Callable:
        """`function`, whose calls are booked as a part of the work."""

        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            begin = self.read()
            try:
                return function(*args, **kwargs)
            finally:
                self.spans.append((part, begin, self.read()))

        return wrapper

    @property
    def ms(self) -> float:
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
        """What the table shows, in the order of `COLUMNS`."""
        case = (str(self.context), str(self.rows), self.variant, f"{self.ms:.1f}")
        shares = (f"{100 * share:.1f}%" for share in (self.policy, self.refresh))
        ratios = (f"{self.speed_up:.2f}", f"{self.own_cache:.2f}")
        return *case, *ratios, *shares, f"{self.megabytes:.0f}", f"{self.bound:.0%}", f"{self.cache_megabytes:.0f}"


class Prompt:
    """A context that was processed once, for the base's cache and for ours."""

    def __init__(self, model: SOLForCausalLM, context: int, rows: int):
        seeded = torch.Generator().manual_seed(0)
        self.ids = torch.randint(model.config.base_vocab_size, (rows, context), generator=seeded).to(model.base.device)
        self.cache = model.new_cache()
        with torch.no_grad():
            model(self.ids[:, :-1], past_key_values=self.cache, logits_to_keep=1)
            if all(isinstance(layer, PagedLayer) for layer in self.cache.layers):
                self.dynamic = DynamicCache(config=model.base.config)
                for index, layer in enumerate(self.cache.layers):
                    self.dynamic.update(layer.keys.clone(), layer.values.clone(), index)
            else:
                self.dynamic = model.base(self.ids[:, :-1], use_cache=True, logits_to_keep=1).past_key_values

    @property
    def cache_bytes(self) -> tuple[int, int]:
        """Bytes of keys, and of values."""
        layers = [layer for layer in self.cache.layers if layer.is_initialized]
        return sum(layer.keys.nbytes for layer in layers), sum(layer.values.nbytes for layer in layers)


def make_variants(model: SOLForCausalLM, options: argparse.Namespace) -> dict[str, Callable]:
    """The generations to compare, by name; each takes a stopwatch, a prompt, and the arguments of generate."""
    dense = ScheduleController(torch.full((options.new_tokens + 2, 1), model.action_space.dense_id))
    chooser = FixedController() if options.controller == "fixed" else PolicyController(model.policy)

    def under(inner: Controller, budget: tuple[float, ...] | None) -> Callable:
        def run(watch: Stopwatch, prompt: Prompt, **kwargs):
            targets = {} if budget is None else dict(zip(("token_keep", "mlp_keep", "bits"), budget, strict=True))
            is_dense = budget is not None and budget == (1, 1, 16)
            cache = copy.deepcopy(prompt.dynamic if is_dense else prompt.cache)
            controller = None if is_dense else TimedController(inner, watch)
            extra = dict(backend=options.backend, kv_refresh=options.kv_refresh, controller=controller)
            return model.generate(**kwargs, **targets, **extra, past_key_values=cache)

        return run

    def base(watch: Stopwatch, prompt: Prompt, **kwargs):
        return model.base.generate(**kwargs, past_key_values=copy.deepcopy(prompt.dynamic))

    budgets = {"({:g}, {:g}, {:g})".format(*budget): under(chooser, budget) for budget in options.budgets}
    return {"base": base, DENSE: under(dense, None), **budgets}


def measure(generate: Callable, prompt: Prompt, new_tokens: int, clock: str) -> Stopwatch:
    """Runs one generation with `new_tokens` steps after the first new token."""
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


def benchmark(model: SOLForCausalLM, options: argparse.Namespace) -> list[Result]:
    """All variants at all contexts and batch sizes."""
    variants = make_variants(model, options)
    cases = [(context, rows) for context in options.contexts for rows in options.batch_sizes]
    results = []
    with tqdm(total=len(variants) * (1 + options.repeats) * len(cases), unit="run", disable=None) as bar:

        def run(name: str, prompt: Prompt, new_tokens: int) -> Stopwatch:
            bar.set_description(f"{prompt.ids.shape[1]} x {len(prompt.ids)}, {name}")
            watch = measure(variants[name], prompt, new_tokens, options.clock)
            bar.update()
            return watch

        for context, rows in cases:
            prompt = Prompt(model, context, rows)
            for name in variants:  # so that the measured runs find everything warm, and choices of a backend made
                run(name, prompt, options.new_tokens)
            rounds = [
                {name: run(name, prompt, options.new_tokens) for name in variants} for _ in range(options.repeats)
            ]
            results += summarise(model, prompt, rounds, options)
    return results


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


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    options = parse_options(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    options.bandwidth = copy_bandwidth(options.device)
    machine = describe_machine(options.device) | {"dtype": options.dtype, "clock": options.clock}
    machine["copy bandwidth"] = f"{options.bandwidth / 1e9:.1f} GB/s"
    print(", ".join(f"{name} {value}" for name, value in machine.items()), NOTE, sep="\n")
    try:
        base = load_base(options.model, options.dtype, options.device)
    except ModelUnavailableError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    positions = getattr(base.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if positions is not None and max(options.contexts) + options.new_tokens + 1 > positions:
        print(f"error: the model has {positions} positions, fewer than context and new tokens need", file=sys.stderr)
        return 2
    model = (
        SOLForCausalLM.from_pretrained(options.policy, base=base) if options.policy else SOLForCausalLM.from_base(base)
    )
    results = benchmark(model, options)
    show(COLUMNS, [result.cells() for result in results])
    if options.json:
        settings = {
            name: getattr(options, name) for name in ("model", "policy", "controller", "backend", "kv_refresh")
        }
        report = {"machine": machine, **settings, "new_tokens": options.new_tokens, "note": NOTE}
        report["results"] = [asdict(result) for result in results]
        report["choices"] = sorted({f"{situation[0]}: {name}" for situation, name in measured_choices().items()})
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
