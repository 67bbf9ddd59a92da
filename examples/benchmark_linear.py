# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Times the linear layers of a model in float32 on the CPU, by torch's BLAS and by oneDNN, and prints one table.

    python examples/benchmark_linear.py --model smollm2-135m --rows 1 8 16 32 128 --json benchmark_linear.json

Every line is one shape of weight, `outputs x channels`, with as many weights in turn as no cache holds. `blas` and
`onednn` are medians in milliseconds of one product, `ratio` the first over the second, `GB/s` the weights that oneDNN
reads per second. `--model` is `smollm2-135m`, `llama-3.2-1b`, `qwen3-4b` or `qwen3-8b`; only their shapes matter.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.nn import functional

from benchmark_machine import NOTE, SHAPES, copy_bandwidth, describe_machine, show
from sol_hf.step_linear import has_onednn, multiply


SMOLLM2 = dict(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_attention_heads=9,
    num_key_value_heads=3,
    head_dim=64,
)
COLUMNS = ("weight", "role", "rows", "blas", "onednn", "ratio", "GB/s")
BYTES_OF_WEIGHTS = 1 << 27
"""More than caches hold."""


@dataclass(frozen=True)
class Result:
    """A line of the table; times in milliseconds of one product."""

    outputs: int
    channels: int
    role: str
    rows: int
    blas: float
    onednn: float

    @property
    def cells(self) -> tuple[str, ...]:
        """The line of the table."""
        rate = 4 * self.outputs * self.channels / self.onednn / 1e6
        numbers = f"{self.blas:.3f}", f"{self.onednn:.3f}", f"{self.blas / self.onednn:.2f}", f"{rate:.1f}"
        return f"{self.outputs} x {self.channels}", self.role, str(self.rows), *numbers


def weights_of(name: str) -> dict[str, tuple[int, int]]:
    """Shapes `(outputs, channels)` of a model's linear layers by their role."""
    shape = SHAPES.get(name, SMOLLM2)
    size, width, head = shape["hidden_size"], shape["intermediate_size"], shape["head_dim"]
    return {
        "query": (shape["num_attention_heads"] * head, size),
        "key, value": (shape["num_key_value_heads"] * head, size),
        "gate, up": (width, size),
        "down": (size, width),
        "head": (shape["vocab_size"], size),
    }


def seconds(function: Callable[[], object]) -> float:
    """How long a call takes."""
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


@torch.inference_mode()
def time_products(outputs: int, channels: int, rows: int, repeats: int) -> tuple[float, float]:
    """Median seconds of a product by BLAS and by oneDNN, which take turns."""
    count = max(1, BYTES_OF_WEIGHTS // (4 * outputs * channels))
    weights = [torch.randn(outputs, channels) for _ in range(count)]
    x = torch.randn(rows, 1, channels)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(1 + repeats):
        times[0].append(seconds(lambda: [functional.linear(x, weight) for weight in weights]) / count)
        times[1].append(seconds(lambda: [multiply(x, weight, None) for weight in weights]) / count)
    return statistics.median(times[0][1:]), statistics.median(times[1][1:])


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(description="Time linear layers by BLAS and by oneDNN.")
    parser.add_argument("--model", default="smollm2-135m", choices=("smollm2-135m", *SHAPES))
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 16, 32, 128])
    parser.add_argument("--repeats", type=int, default=9, help="rounds that count")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers to this file")
    options = parser.parse_args(arguments)
    if min(*options.rows, options.repeats) < 1:
        parser.error("rows and repeats must be at least 1")
    if not has_onednn():
        print("error: this torch has no oneDNN, or the processor is not one that uses it here", file=sys.stderr)
        return 1
    machine = describe_machine("cpu") | {"copy GB/s": round(copy_bandwidth("cpu") / 1e9, 1)}
    print(", ".join(f"{name} {value}" for name, value in machine.items()), NOTE, sep="\n")
    results = [
        Result(*shape, role, rows, *(1e3 * taken for taken in time_products(*shape, rows, options.repeats)))
        for role, shape in weights_of(options.model).items()
        for rows in options.rows
    ]
    show(COLUMNS, [result.cells for result in results])
    if options.json:
        report = {"machine": machine, "results": [asdict(result) for result in results]}
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
