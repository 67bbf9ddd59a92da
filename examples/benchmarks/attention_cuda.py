# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Memory bandwidth that the Triton attention kernels of a decode step reach on a GPU.

    python examples/benchmarks/attention_cuda.py --json attention.json

Times, for one layer of an 8B-shaped model, dense scaled dot product attention and three stages over selected pages:
scoring the page index, choosing, attending. The bound is the number of bytes that must be read (page index, chosen
keys and values) divided by the copy bandwidth, which is measured first. Without a GPU, `--interpret` runs the same at
tiny sizes to check that it works; its times have no meaning.
"""

import argparse
import functools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.functional import scaled_dot_product_attention


COLUMNS = (
    "context rows choice token_keep dense_us score_us choose_us attend_us total_us bound_us share attend_share speedup"
).split()
COLD_BYTES = 1 << 29
"""Bytes of keys and values that are used in turn: several times the cache of a GPU."""


def microseconds(calls: Sequence[Callable], device: str, repeats: int) -> float:
    """Median time of a call over several rounds. The calls of a round use different data, which is not cached.

    On a GPU the calls run from one CUDA graph, as in a captured step, so that launch overhead is not measured.
    """
    if device != "cuda":
        return statistics.median(1e6 * seconds(call) for call in calls for _ in range(repeats))
    graph = torch.cuda.CUDAGraph()
    for call in calls:
        call()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        kept = [call() for call in calls]
    graph.replay()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(1000 * begin.elapsed_time(end) / len(kept))
    return statistics.median(times)


def seconds(call: Callable) -> float:
    """Time of one call on the CPU."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def copy_bandwidth(device: str, size: int, repeats: int) -> float:
    """Bytes per second, read and written, of a copy of `size` bytes."""
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / (1e-6 * microseconds([lambda: target.copy_(source)] * 4, device, repeats))


@dataclass
class Layer:
    """The inputs of the attention of one layer: a step's queries, cached keys and values, and their page index."""

    query: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    upper: torch.Tensor
    lower: torch.Tensor
    chosen: torch.Tensor
    number: torch.Tensor


def make_layer(context: int, rows: int, shared: bool, fraction: torch.Tensor, options: argparse.Namespace) -> Layer:
    """Random inputs, and the pages that the kernels choose."""
    from sol_hf.kernels.cuda.pages import score_pages
    from sol_hf.kernels.cuda.select_pages import select_largest
    from sol_hf.selection.pages import page_bounds

    make = dict(device=options.device, dtype=getattr(torch, options.dtype))
    size, dim, pages = options.page_size, options.head_dim, -(-context // options.page_size)
    query = torch.randn(rows, options.heads, 1, dim, **make)
    keys, values = torch.randn(2, rows, options.kv_heads, context, dim, **make)
    first = torch.zeros(rows, dtype=torch.long, device=options.device)
    upper, lower = (x.contiguous() for x in page_bounds(keys, size, first, first, pages))
    scores = score_pages(query, upper, lower, fraction, first + context, pages, size, shared)
    chosen, number = select_largest(scores, fraction, first + context, size, False)
    return Layer(query, keys, values, upper, lower, chosen, number)


def measure(context: int, rows: int, choice: str, keep: float, options: argparse.Namespace, bandwidth: float) -> dict:
    """One line of the table."""
    from sol_hf.kernels.cuda.attention import attend_pages
    from sol_hf.kernels.cuda.pages import score_pages
    from sol_hf.kernels.cuda.select_pages import select_largest

    size, dim, shared = options.page_size, options.head_dim, choice == "group"
    first = torch.zeros(rows, dtype=torch.long, device=options.device)
    fraction, count, pages = torch.full_like(first, 0).float() + keep, first + context, -(-context // size)
    kv_bytes = 2 * rows * options.kv_heads * context * dim * 2
    sets = 1 if options.interpret else min(max(-(-COLD_BYTES // kv_bytes), 2), 16)
    layers = [make_layer(context, rows, shared, fraction, options) for _ in range(sets)]

    def score(at: Layer) -> torch.Tensor:
        return score_pages(at.query, at.upper, at.lower, fraction, count, pages, size, shared)

    def attend(at: Layer) -> torch.Tensor:
        where = at.chosen, at.number, first, count
        return attend_pages(at.query, at.keys, at.values, *where, size, dim**-0.5)

    scores = score(layers[0])
    stages: dict[str, Callable] = {
        "dense_us": lambda at: scaled_dot_product_attention(at.query, at.keys, at.values, enable_gqa=True),
        "score_us": score,
        "choose_us": lambda at: select_largest(scores, fraction, count, size, False),
        "attend_us": attend,
        "total_us": lambda at: (score(at), select_largest(scores, fraction, count, size, False), attend(at)),
    }
    times = {
        name: microseconds([functools.partial(stage, layer) for layer in layers], options.device, options.repeats)
        for name, stage in stages.items()
    }
    index = 2 * layers[0].upper.numel() * layers[0].upper.element_size() if keep < 1 else 0
    chosen = statistics.mean(int(layer.number.sum()) for layer in layers) * size
    read = index + 2 * chosen * dim * layers[0].keys.element_size()
    total, bound = times["total_us"], 1e6 * read / bandwidth
    derived = {"bound_us": bound, "share": bound / total, "speedup": times["dense_us"] / total}
    case = {"context": context, "rows": rows, "choice": choice, "token_keep": keep}
    attend_bound = 1e6 * (read - index) / bandwidth
    return {**case, **times, **derived, "attend_share": attend_bound / times["attend_us"], "bytes_read": read}


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--contexts", type=int, nargs="+", default=[4096, 32768])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--token-keep", type=float, nargs="+", default=[0.1, 0.3, 1.0])
    parser.add_argument("--choices", nargs="+", choices=("head", "group"), default=["head", "group"])
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--page-size", type=int, default=16)
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--interpret", action="store_true", help="run on the CPU in Triton's interpreter: slow")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers to this file")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    options = parse_options(arguments)
    if options.interpret:
        os.environ["TRITON_INTERPRET"] = "1"
    elif not torch.cuda.is_available():
        print("error: no GPU here; --interpret runs the kernels on the CPU, to see that they work", file=sys.stderr)
        return 2
    options.device = "cpu" if options.interpret else "cuda"
    name = "CPU, Triton's interpreter" if options.interpret else torch.cuda.get_device_name()
    bandwidth = copy_bandwidth(options.device, 1 << (20 if options.interpret else 30), options.repeats)
    print(f"{name}, torch {torch.__version__}, {options.dtype}, copy bandwidth {bandwidth / 1e9:.0f} GB/s")
    print(" ".join(f"{column:>10}" for column in COLUMNS))
    results = []
    for context in options.contexts:
        for rows in options.rows:
            for choice in options.choices:
                for keep in options.token_keep:
                    results.append(measure(context, rows, choice, keep, options, bandwidth))
                    cells = [results[-1][column] for column in COLUMNS]
                    print(" ".join(f"{c:>10.3f}" if isinstance(c, float) else f"{c:>10}" for c in cells))
    if options.json:
        report = {"device": name, "torch": torch.__version__, "dtype": options.dtype, "bytes_per_second": bandwidth}
        options.json.write_text(json.dumps({**report, "results": results}, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
