# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Times the MLP of a decode step alone, dense and under budgets, in one run on the CPU, and prints one table.

    python examples/benchmarks/mlp.py --repeats 12 --json benchmark_mlp.json

The MLPs are Llama's, with random weights, in the shapes of SmolLM2-135M (576 to 1,536) and of a 1B model (2,048 to
8,192). As with the layers of a model, several of them run in turn, which together do not fit into the caches. The
variants:

    dense           the base's own MLP
    reference       `backend="reference"`: zeroes channels, multiplies by all weights
    masked          the same numbers, channels chosen by compiled code; what `backend="auto"` does with many rows
    fast            reads the weights of the kept channels only, choosing them included
    neurons         `neuron_keep`: all channels, and the last projection reads the kept neurons only
    both            `mlp_keep` and `neuron_keep` at the same level
    int8            `bits_backend="int8"`: all channels, int8 weights

`ratio` is the time of `dense` over that of the variant: more is better. `GB/s` counts the weights that have to be
read: those of channels and neurons that any row keeps. Compare it with the copy bandwidth of the
machine, which is measured first. The variants run in turn, so that a slowdown of the machine affects all of them.
Times are the 15th percentile of all calls, which on a shared machine is the time of an undisturbed call.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP

from sol_hf.execution.mlp.int8 import Int8MLP
from sol_hf.execution.mlp.kept_call import keep_channels
from sol_hf.execution.mlp.kept_channels.input_major import InputMajorMLP
from sol_hf.execution.mlp.kept_neurons.neuron_major import NeuronMajor
from sol_hf.kernels.cpu import sparse_mlp
from sol_hf.selection.channels import keep_top_channels, kept_channels


SHAPES = ((576, 1536), (2048, 8192))
KEEPS = (0.3, 0.5, 0.8)
BYTES_OF_WEIGHTS = 1 << 28
"""Weights of all MLPs of a case together: more than the caches hold."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
COLUMNS = ("shape", "dtype", "rows", "variant", "keep", "ms", "ratio", "GB/s")


@dataclass(frozen=True)
class Result:
    """One variant in one case."""

    shape: str
    dtype: str
    rows: int
    variant: str
    keep: float
    ms: float
    ratio: float
    gigabytes_per_second: float

    def cells(self) -> tuple[str, ...]:
        """The values of a table row."""
        numbers = f"{self.ms:.3f}", f"{self.ratio:.2f}", f"{self.gigabytes_per_second:.1f}"
        return self.shape, self.dtype, str(self.rows), self.variant, f"{self.keep:.1f}", *numbers


@dataclass(frozen=True)
class Variant:
    """A way to compute an MLP, and the bytes of weights that it has to read."""

    name: str
    keep: float
    run: Callable[[int], torch.Tensor]
    bytes_read: int


def copy_bandwidth(size: int = 1 << 28, repeats: int = 8) -> float:
    """GB/s of a large copy, read and written bytes together; the best of some."""
    source, target = torch.ones(size, dtype=torch.uint8), torch.empty(size, dtype=torch.uint8)
    times = [seconds(lambda: target.copy_(source)) for _ in range(repeats)]
    return 2 * size / min(times) / 1e9


def seconds(function: Callable) -> float:
    """Duration of a call."""
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def undisturbed(times: list[float]) -> float:
    """The 15th percentile."""
    return sorted(times)[int(0.15 * len(times))]


def hidden_of(mlp: LlamaMLP, x: torch.Tensor) -> torch.Tensor:
    """The neurons of an MLP, which its last projection gets."""
    return mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x)


def make_variants(mlps: list[LlamaMLP], x: torch.Tensor, keeps: tuple[float, ...]) -> list[Variant]:
    """All variants for an input `(rows, 1, channels)`; their `run` takes the index of an MLP in the list."""
    sparse, int8 = [InputMajorMLP.of(mlp) for mlp in mlps], [Int8MLP.of(mlp) for mlp in mlps]
    lasts = [NeuronMajor.of(mlp.down_proj) for mlp in mlps]
    weights = sum(weight.nbytes for weight in mlps[0].parameters())
    down, rows = mlps[0].down_proj.weight.nbytes, len(x)
    variants = [Variant("dense", 1.0, lambda i: mlps[i](x), weights)]
    for keep in keeps:
        fraction = torch.full((rows,), keep)
        listed = len(keep_channels(x, kept_channels(x, fraction)).listed)
        kept_bytes = down + (weights - down) * listed // x.shape[-1]
        hidden = hidden_of(mlps[0], x)
        kept_down = down * len(keep_channels(hidden, kept_channels(hidden, fraction)).listed) // hidden.shape[-1]

        def masked(i: int, fraction: torch.Tensor = fraction) -> torch.Tensor:
            return mlps[i](sparse_mlp.keep_top_channels(x, fraction).x)

        def fast(i: int, fraction: torch.Tensor = fraction) -> torch.Tensor:
            return sparse[i](sparse_mlp.keep_top_channels(x, fraction))

        def neurons(i: int, fraction: torch.Tensor = fraction) -> torch.Tensor:
            return lasts[i](sparse_mlp.keep_top_channels(hidden_of(mlps[i], x), fraction))

        def both(i: int, fraction: torch.Tensor = fraction) -> torch.Tensor:
            hidden = sparse[i].neurons(sparse_mlp.keep_top_channels(x, fraction))
            return lasts[i](sparse_mlp.keep_top_channels(hidden, fraction))

        def reference(i: int, fraction: torch.Tensor = fraction) -> torch.Tensor:
            return mlps[i](keep_top_channels(x, fraction))

        variants += [
            Variant("reference", keep, reference, weights),
            Variant("masked", keep, masked, weights),
            Variant("fast", keep, fast, kept_bytes),
            Variant("neurons", keep, neurons, weights - down + kept_down),
            Variant("both", keep, both, kept_bytes - down + kept_down),
        ]
    size = sum(weight.numel() for weight in mlps[0].parameters())
    return [*variants, Variant("int8", 1.0, lambda i: int8[i](x), size)]


@torch.no_grad()
def benchmark(options: argparse.Namespace) -> list[Result]:
    """All variants in all cases."""
    results = []
    for (channels, width), dtype in ((shape, dtype) for shape in options.shapes for dtype in options.dtypes):
        config = LlamaConfig(hidden_size=channels, intermediate_size=width)
        layers = max(1, BYTES_OF_WEIGHTS // (3 * channels * width * DTYPES[dtype].itemsize))
        mlps = [LlamaMLP(config).to(DTYPES[dtype]).eval() for _ in range(layers)]
        for rows in options.rows:
            x = torch.randn(rows, 1, channels, generator=torch.Generator().manual_seed(0)).to(DTYPES[dtype])
            variants = make_variants(mlps, x, KEEPS)
            times: list[list[float]] = [[] for _ in variants]
            for _ in range(1 + options.repeats):
                for variant, taken in zip(variants, times, strict=True):
                    taken += [seconds(lambda i=i, run=variant.run: run(i)) for i in range(layers)]
            typical = [undisturbed(taken[layers:]) for taken in times]  # the first round warmed up
            for variant, time_taken in zip(variants, typical, strict=True):
                rate = variant.bytes_read / time_taken / 1e9
                case = (f"{channels}-{width}", dtype, rows, variant.name, variant.keep)
                results.append(Result(*case, 1e3 * time_taken, typical[0] / time_taken, rate))
                print("{:>10} {:>9} {:>4} {:<10} {:>4} {:>8} {:>6} {:>6}".format(*results[-1].cells()), flush=True)
    return results


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Time the MLP of a decode step alone, dense and under budgets.")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--dtypes", nargs="+", choices=tuple(DTYPES), default=list(DTYPES))
    parser.add_argument("--repeats", type=int, default=12, help="rounds over all variants")
    parser.add_argument("--threads", type=int, help="of torch (default: its own choice)")
    parser.add_argument("--tiny", action="store_true", help="a small shape, to see that it runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers to this file")
    options = parser.parse_args(arguments)
    options.shapes = ((64, 128),) if options.tiny else SHAPES
    if min(*options.rows, options.repeats, options.threads or 1) < 1:
        parser.error("rows, repeats and threads must be at least 1")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    options = parse_options(arguments)
    torch.set_num_threads(options.threads or torch.get_num_threads())
    machine = {
        "processor": platform.machine(),
        "torch threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "copy GB/s": round(copy_bandwidth(), 1),
    }
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    print("{:>10} {:>9} {:>4} {:<10} {:>4} {:>8} {:>6} {:>6}".format(*COLUMNS))
    results = benchmark(options)
    if options.json:
        report = {"machine": machine, "results": [asdict(result) for result in results]}
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
