# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Times the linear layers of a model in float32 on the CPU, by every implementation that a decode step may use.

    python examples/benchmarks/linear.py --model smollm2-135m --rows 1 8 16 32 128 --json benchmark_linear.json

Every line is one shape of weight, `outputs x channels`; the products use several weights in turn, which do not fit
into the caches. `blas` is the median in milliseconds of one product by torch's BLAS; `onednn` and `compiled` are the
speed-ups of oneDNN and of our kernel (empty for more rows than it supports); `GB/s` is the rate at which the fastest
reads weights. `--model` is `smollm2-135m`, `llama-3.2-1b`, `qwen3-4b` or `qwen3-8b`; only their shapes matter.
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

from machine import NOTE, SHAPES, copy_bandwidth, describe_machine, show
from sol_hf.execution.linear.onednn import has_onednn
from sol_hf.execution.linear.operation import LINEAR, LinearCall


SMOLLM2 = dict(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_attention_heads=9,
    num_key_value_heads=3,
    head_dim=64,
)
COLUMNS = ("weight", "role", "rows", "blas", "onednn", "compiled", "GB/s")
BYTES_OF_WEIGHTS = 1 << 27
"""Bytes of all weights of a shape: more than the caches hold."""


@dataclass(frozen=True)
class Result:
    """A line of the table; times in milliseconds of one product, by implementation."""

    outputs: int
    channels: int
    role: str
    rows: int
    times: dict[str, float]

    @property
    def cells(self) -> tuple[str, ...]:
        """The values of a table row."""
        blas, rate = self.times["blas"], 4 * self.outputs * self.channels / min(self.times.values()) / 1e6
        gains = [f"{blas / self.times[name]:.2f}" if name in self.times else "" for name in ("onednn", "compiled")]
        return f"{self.outputs} x {self.channels}", self.role, str(self.rows), f"{blas:.3f}", *gains, f"{rate:.1f}"


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
    """Duration of a call."""
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


@torch.inference_mode()
def time_products(outputs: int, channels: int, rows: int, repeats: int) -> dict[str, float]:
    """Median milliseconds of a product by every implementation; they run in turn."""
    count = max(1, BYTES_OF_WEIGHTS // (4 * outputs * channels))
    x = torch.randn(rows, 1, channels)
    products = [LINEAR.usable(LinearCall(x, torch.randn(outputs, channels), None)) for _ in range(count)]
    times: dict[str, list[float]] = {name: [] for name in products[0]}
    for _ in range(1 + repeats):
        for name, taken in times.items():
            taken.append(1e3 * seconds(lambda name=name: [usable[name]() for usable in products]) / count)
    return {name: statistics.median(taken[1:]) for name, taken in times.items()}


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(description="Time linear layers by BLAS, by oneDNN and by a compiled kernel.")
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
        Result(*shape, role, rows, time_products(*shape, rows, options.repeats))
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
