# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Times products with weights in nested planes (`bits_backend="nested"`) on the CPU, against the original weights.

    python examples/benchmarks/planes.py --rows 1 4 8 --threads 1 --json benchmark_planes.json

Every line is one shape of weight, `outputs x channels`, of SmolLM2-135M; the products use several weights in turn,
which do not fit into the caches. `dense` is the time in microseconds of one product as a step computes it with the
original weights under `backend="auto"`; the other columns are how many times as fast the planes are, by the number of
bits that are read. The variants run in turn, so that a slowdown of the machine affects all of them. Times are the 15th
percentile of all rounds, which on a shared machine is the time of an undisturbed one. `--clock cpu` with `--threads 1`
measures processor time, for machines with other load.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from linear import weights_of
from machine import CLOCKS, NOTE, describe_machine, show
from sol_hf.execution.linear.operation import LINEAR, LinearCall
from sol_hf.execution.linear.planes.operation import PLANES_PRODUCT, PlanesCall
from sol_hf.selection.nested_planes import WIDTHS, encode


COLUMNS = ("weight", "dtype", "rows", "dense", *(f"{bits} bits" for bits in WIDTHS))
BYTES_OF_WEIGHTS = 1 << 26
"""Bytes of all weights of a shape: more than the caches hold."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Result:
    """A line of the table; `times` are microseconds of a product, by number of bits, those of dense first."""

    outputs: int
    channels: int
    dtype: str
    rows: int
    times: dict[str, float]

    @property
    def cells(self) -> tuple[str, ...]:
        """The values of a table row."""
        dense = self.times["dense"]
        gains = [f"{dense / time:.2f}" for name, time in self.times.items() if name != "dense"]
        return f"{self.outputs} x {self.channels}", self.dtype, str(self.rows), f"{dense:.0f}", *gains


@torch.inference_mode()
def time_products(
    outputs: int, channels: int, dtype: torch.dtype, rows: int, repeats: int, clock: str
) -> dict[str, float]:
    """Microseconds of a product, by the number of bits that are read; they run in turn."""
    count = max(1, BYTES_OF_WEIGHTS // (dtype.itemsize * outputs * channels))
    weights = [torch.randn(outputs, channels).to(dtype) for _ in range(count)]
    planes, x = [encode(weight) for weight in weights], torch.randn(rows, 1, channels).to(dtype)
    variants = {"dense": lambda: [LINEAR.run(LinearCall(x, weight, None), "auto") for weight in weights]}
    for bits in WIDTHS:
        variants[str(bits)] = lambda bits=bits: [
            PLANES_PRODUCT.run(PlanesCall(x, each, bits, None), "auto") for each in planes
        ]
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(1 + repeats):
        for name, run in variants.items():
            begin = CLOCKS[clock]()
            run()
            times[name].append(1e6 * (CLOCKS[clock]() - begin) / count)
    return {name: sorted(taken[1:])[int(0.15 * repeats)] for name, taken in times.items()}


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(description="Time products with nested planes against the original weights.")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=20, help="rounds that count")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers to this file")
    options = parser.parse_args(arguments)
    if min(*options.rows, options.repeats, options.threads) < 1:
        parser.error("rows, threads and repeats must be at least 1")
    torch.set_num_threads(options.threads)
    machine = describe_machine("cpu") | {"clock": options.clock}
    print(", ".join(f"{name} {value}" for name, value in machine.items()), NOTE, sep="\n")
    results = [
        Result(*shape, name, rows, time_products(*shape, dtype, rows, options.repeats, options.clock))
        for role, shape in weights_of("smollm2-135m").items()
        if role in ("gate, up", "down", "head")
        for name, dtype in DTYPES.items()
        for rows in options.rows
    ]
    show(COLUMNS, [result.cells for result in results])
    if options.json:
        report = {"machine": machine, "results": [asdict(result) for result in results]}
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
