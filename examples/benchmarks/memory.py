# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Estimate of the memory that a case of a benchmark needs, and the memory that is available.

process      torch, transformers, the policy
weights      of the base
copies       of gate and up, if a budget drops channels of few rows, so that the fast path is used
caches       one to decode in, and one to copy from, or the drawn tokens of a random context
page index   two keys per page, for our cache
transients   keys and values of a layer, when `DynamicCache` appends to them or the reference of a sparse step
             gathers them for every query head; or activations of a processed prompt
"""

import argparse
import ctypes
import math
import os
from pathlib import Path

import torch
from transformers import PreTrainedModel

from prompt import PERIOD, REAL_TOKENS, SPARE_TOKENS
from sol_hf import SOLConfig
from sol_hf.execution.mlp.discovery import find_mlps
from sol_hf.execution.mlp.kept_call import MOST_TOKENS


PROCESS = 0.9e9
SPARE_ROOM = 1.25
"""Capacity of a cache layer that has grown, divided by the number of its tokens."""
HOLES = 0.25
"""Share of a cache that is lost between tensors of the heap, where glibc puts those of less than `OF_HEAP` bytes."""
OF_HEAP = 32 * 2**20


def copied_bytes(base: PreTrainedModel, options: argparse.Namespace, rows: int) -> int:
    """Bytes of the copies of MLP weights that the runs of a case make."""
    drops = any(mlp_keep < 1 for _, mlp_keep, _ in options.budgets)
    if not drops or rows > MOST_TOKENS or options.backend == "reference":
        return 0
    return sum(p.nbytes for mlp in find_mlps(base) for name, p in mlp.named_parameters() if "down" not in name)


def token_bytes(base: PreTrainedModel) -> tuple[int, int]:
    """Bytes of a token's keys and values, in all layers, and in the copies of a layer for every query head."""
    config = base.config.get_text_config(decoder=True)
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    head = 2 * dim * base.dtype.itemsize
    return config.num_hidden_layers * kv_heads * head, heads * head


def needed_bytes(base: PreTrainedModel, options: argparse.Namespace, context: int, rows: int) -> float:
    """Estimate of the bytes that a case needs at its peak.

    Args:
        base (`PreTrainedModel`): The base, on the meta device too.
        options (`argparse.Namespace`): Of the benchmark: `fill`, `budgets`, `backend`, `new_tokens`.
        context (`int`): Tokens of a row.
        rows (`int`): Texts.
    """
    config = base.config.get_text_config(decoder=True)
    token, spread = token_bytes(base)
    keys_and_values = rows * context * token
    if options.fill == "random":
        cache = rows * (context + options.new_tokens + SPARE_TOKENS) * token
        kept, processed = (PERIOD + rows * REAL_TOKENS) * token, rows * REAL_TOKENS
    else:
        cache = kept = SPARE_ROOM * keys_and_values
        processed = rows * context
    index = keys_and_values / SOLConfig().page_size if any(budget[0] < 1 for budget in options.budgets) else 0
    width = 6 * config.hidden_size + 3 * (getattr(config, "intermediate_size", None) or 4 * config.hidden_size)
    activations = processed * width * base.dtype.itemsize
    weights = sum(p.nbytes for p in base.parameters())
    in_heap = cache < 2 * config.num_hidden_layers * OF_HEAP
    decoding = cache + index + rows * context * spread + (HOLES * cache if in_heap else 0)
    return PROCESS + weights + copied_bytes(base, options, rows) + kept + max(decoding, activations)


def give_back() -> None:
    """Return unused memory of the C library's allocator to the system, if it is glibc's.

    A freed cache leaves gaps between memory that is in use, and the next cache does not fit into them.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def free_bytes(device: str) -> float:
    """Bytes that this process may hold in all, those it has and those that are free; infinite if not known."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
    total = 0
    for file, name in (("/proc/meminfo", "MemAvailable"), (f"/proc/{os.getpid()}/status", "RssAnon")):
        if not Path(file).exists():
            return math.inf
        lines = Path(file).read_text(encoding="utf-8").splitlines()
        total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith(name + ":"))
    return total
