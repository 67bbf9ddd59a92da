# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Times the attention of one layer in a decode step, for all of its implementations.

    python examples/benchmarks/attention.py --model smollm2-135m --contexts 512 4096 --token-keep .2 .5 --dtype float32

The implementations: `dense sdpa` over all keys (grouped, as transformers calls it), and over the selected pages
`gather` (the reference), `masked` and `numba`. `bound` is the share of the time that the measured copy bandwidth needs
for the bytes that have to be read: dense keys and values, or `token_keep` of them and the page index. As in a real
step, consecutive calls use different layers, which together do not fit into the processor's cache.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import LlamaConfig

from machine import (
    CLOCKS,
    NOTE,
    SHAPES,
    SMOLLM2,
    copy_bandwidth,
    describe_machine,
    median_seconds,
    show,
)
from sol_hf import ActionSpace, SOLCache
from sol_hf.execution.attention.step.operation import STEP_ATTENTION, StepAttention
from sol_hf.execution.plan import StepPlan
from sol_hf.selection.rule import SelectionRule


COLUMNS = ("context", "rows", "token_keep", "selection", "way", "us", "speed-up", "bound")
HEADS = {SMOLLM2: (9, 3, 64)}


@dataclass(frozen=True)
class Result:
    """One line of the table."""

    context: int
    rows: int
    token_keep: float
    selection: str
    way: str
    us: float
    speed_up: float
    bound: float

    def cells(self) -> tuple[str, ...]:
        """The values of a table row, in the order of `COLUMNS`."""
        case = (str(self.context), str(self.rows), f"{self.token_keep:g}", self.selection, self.way)
        return *case, f"{self.us:.0f}", f"{self.speed_up:.2f}", f"{self.bound:.0%}"


def heads_of(model: str) -> tuple[int, int, int]:
    """Query heads, key-value heads and head size of a model by name."""
    if model in HEADS:
        return HEADS[model]
    shape = SHAPES[model]
    return shape["num_attention_heads"], shape["num_key_value_heads"], shape["head_dim"]


def filled_cache(heads: tuple[int, int, int], rows: int, context: int, options: argparse.Namespace) -> SOLCache:
    """A cache of random keys and values."""
    total, kv_heads, dim = heads
    layers = max(2, min(8, options.megabytes * 10**6 // (rows * kv_heads * context * dim * 8)))
    config = LlamaConfig(
        num_hidden_layers=layers, hidden_size=total * dim, num_attention_heads=total, num_key_value_heads=kv_heads
    )
    cache = SOLCache(config, ActionSpace([0.1, 1.0], [1.0], [16]), options.page_size)
    cache.set_padding(torch.zeros(rows, dtype=torch.long))
    shape, dtype = (rows, kv_heads, context, dim), getattr(torch, options.dtype)
    for index in range(layers):
        cache.update(torch.randn(shape).to(dtype), torch.randn(shape).to(dtype), index)
    return cache


def ways_to_attend(cache: SOLCache, query: torch.Tensor, keep: float, rule: SelectionRule) -> dict[str, Callable]:
    """The computations to compare, by name; each call uses the next layer."""
    token_keep = torch.full((len(query),), keep)
    plan = StepPlan(cache, rule, {"token_keep": token_keep}, backend="fast")
    turns: Iterator[int] = itertools.cycle(range(len(cache.layers)))

    def over(function: Callable) -> Callable:
        def run() -> torch.Tensor:
            index = next(turns)
            return function(index, cache.layers[index].keys, cache.layers[index].values)

        return run

    def by(name: str) -> Callable:
        implementation = STEP_ATTENTION[name]
        return over(lambda i, k, v: implementation.prepare(StepAttention(plan, i, query, k, v))())

    grouped = query.shape[1] > cache.layers[0].keys.shape[1]
    dense = over(lambda i, k, v: scaled_dot_product_attention(query, k, v, enable_gqa=grouped))
    call = StepAttention(plan, 0, query, cache.layers[0].keys, cache.layers[0].values)
    return {"dense sdpa": dense} | {name: by(name) for name in STEP_ATTENTION.usable(call)}


def benchmark(options: argparse.Namespace) -> list[Result]:
    """Time all implementations at all contexts, rows and shares of the keys."""
    heads, results = heads_of(options.model), []
    for context, rows in itertools.product(options.contexts, options.batch_sizes):
        cache = filled_cache(heads, rows, context, options)
        query = torch.randn(rows, heads[0], 1, heads[2]).to(getattr(torch, options.dtype))
        keys = cache.layers[0].keys.nbytes
        dense = None
        for selection, keep in itertools.product(("head", "group"), options.token_keep):
            rule = SelectionRule(page_size=options.page_size, selection=selection)
            for way, run in ways_to_attend(cache, query, keep, rule).items():
                if way == "dense sdpa" and dense is not None:
                    continue
                seconds = median_seconds(run, options.clock, "cpu", options.repeats)
                is_dense = way == "dense sdpa"
                dense = seconds if is_dense else dense
                needed = 2 * keys if is_dense else 2 * keep * keys + 2 * keys / options.page_size
                case = (context, rows, 1.0 if is_dense else keep, "" if is_dense else selection, way)
                results.append(Result(*case, 1e6 * seconds, dense / seconds, needed / options.bandwidth / seconds))
    return results


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Time the attention of one layer in a decode step.")
    parser.add_argument("--model", choices=(*HEADS, *SHAPES), default=SMOLLM2, help="whose heads to take")
    parser.add_argument("--contexts", type=int, nargs="+", default=[512, 4096])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1])
    parser.add_argument("--token-keep", type=float, nargs="+", default=[0.2, 0.5])
    parser.add_argument("--page-size", type=int, default=8)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall")
    parser.add_argument("--threads", type=int, help="of torch (default: as many as it takes)")
    parser.add_argument("--megabytes", type=int, default=64, help="of keys and values to walk through")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers to this file")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    options = parse_options(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    options.bandwidth = copy_bandwidth("cpu")
    machine = describe_machine("cpu") | {"dtype": options.dtype, "clock": options.clock}
    machine["copy bandwidth"] = f"{options.bandwidth / 1e9:.1f} GB/s"
    print(", ".join(f"{name} {value}" for name, value in machine.items()), NOTE, sep="\n")
    with torch.no_grad():
        results = benchmark(options)
    show(COLUMNS, [result.cells() for result in results])
    if options.json:
        report = {"machine": machine, "model": options.model, "note": NOTE}
        report["results"] = [asdict(result) for result in results]
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
