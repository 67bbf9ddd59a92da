# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Helpers of the benchmarks: shapes of models by name, the machine and its bandwidth, clocks, and a table.

Random weights are repetitions of one block of normal numbers, with another offset in every weight, since drawing eight
billion numbers takes minutes. The length of the block is a prime, so that no two rows of a matrix are equal. No number
in it is so small that arithmetic with it is slow.
"""

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.initialization import no_init_weights

from sol_hf.integrations.packaged_bases import base_source
from sol_hf.integrations.smollm2 import SMOLLM2


__all__ = ["CLOCKS", "NOTE", "SHAPES", "SMOLLM2", "copy_bandwidth", "describe_machine", "fill_weights", "load_base"]

NOTE = "Only ratios within a run mean anything: times depend on the machine and on what else it does."
SHAPES: dict[str, dict] = {
    "llama-3.2-1b": dict(
        model_type="llama",
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        tie_word_embeddings=True,
    ),
    "qwen3-4b": dict(
        model_type="qwen3",
        vocab_size=151936,
        hidden_size=2560,
        intermediate_size=9728,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
    ),
    "qwen3-8b": dict(
        model_type="qwen3",
        vocab_size=151936,
        hidden_size=4096,
        intermediate_size=12288,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=False,
    ),
}
"""Models by the sizes of their configs; their weights are random."""
BLOCK = 1_000_003
"""Different numbers in random weights, a prime."""
SCALE = 0.02
"""Standard deviation of random weights."""
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


def load_base(name: str, dtype: str, device: str) -> PreTrainedModel:
    """A model by name: SmolLM2 itself, a shape with random weights, or the model of a folder or hub id."""
    if name in SHAPES:
        settings = {"max_position_embeddings": 131072, "bos_token_id": 0, "eos_token_id": None, "pad_token_id": None}
        config = AutoConfig.for_model(**{**SHAPES[name], **settings})
        with torch.device(device), no_init_weights():
            base = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype), attn_implementation="sdpa")
        base.tie_weights()
        if device != "meta":
            fill_weights(base)
        base.generation_config.pad_token_id = 0
        return base.eval()
    return (
        AutoModelForCausalLM.from_pretrained(base_source(name), dtype=dtype, attn_implementation="sdpa")
        .to(device)
        .eval()
    )


@torch.no_grad()
def fill_weights(module: nn.Module) -> None:
    """Give matrices random values by repeating a block, and norms ones, in place."""
    block = SCALE * torch.randn(BLOCK, generator=torch.Generator().manual_seed(0))
    block = torch.where(block.abs() < SCALE / 100, SCALE / 100, block)
    start = 0
    for parameter in module.parameters():
        if parameter.dim() == 1:
            parameter.fill_(1)
            continue
        pieces = block.to(parameter.device, parameter.dtype).roll(-start)
        for piece in parameter.view(-1).split(BLOCK):
            piece.copy_(pieces[: len(piece)])
        start = (start + parameter.numel()) % BLOCK


def copy_bandwidth(device: str, megabytes: int = 256) -> float:
    """Bytes per second that a large copy moves, read and written ones together; the best of five."""
    source = torch.ones(megabytes * 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(5):
        synchronize(device)
        begin = time.perf_counter()
        target.copy_(source)
        synchronize(device)
        best = min(best, time.perf_counter() - begin)
    return 2 * source.numel() / best


def synchronize(device: str) -> None:
    """Wait for an accelerator."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def describe_machine(device: str) -> dict[str, str | int]:
    """Properties of the machine on which the times depend."""
    name = torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor() or platform.machine()
    threads = torch.get_num_threads()
    return {"device": name, "cores": os.cpu_count() or 1, "torch threads": threads, "torch": torch.__version__}


def median_seconds(function: Callable[[], object], clock: str, device: str, repeats: int) -> float:
    """Median time of a function, after two calls that warm up."""
    read, times = CLOCKS[clock], []
    for number in range(repeats + 2):
        synchronize(device)
        begin = read()
        function()
        synchronize(device)
        if number >= 2:
            times.append(read() - begin)
    return statistics.median(times)


def show(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """Print a table, with rich if it is installed."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        widths = [max(len(line[place]) for line in (columns, *lines)) for place in range(len(columns))]
        for line in (columns, *lines):
            print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
        return
    table = Table()
    for name in columns:
        table.add_column(name, justify="left" if name in ("variant", "way") else "right", no_wrap=True)
    for line in lines:
        table.add_row(*line)
    Console(width=None if sys.stdout.isatty() else 140).print(table)
