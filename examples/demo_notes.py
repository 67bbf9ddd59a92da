# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The words around the numbers of `demo.py`: notes that explain them, and what is the fastest."""

import argparse

import torch

from demo_render import Continuation
from demo_run import ROUNDS


def advice(continuations: tuple[Continuation, ...]) -> str:
    """The last line: what is the fastest, and what is the fastest with the same text."""
    first = continuations[0].tokens_per_second
    timed = [item for item in continuations if item.tokens_per_second]
    if not first or not timed:
        return "fastest here: unknown, the texts are too short to be timed"
    best = max(timed, key=lambda item: item.tokens_per_second)
    dense = max((item for item in timed if item.requested is None), key=lambda item: item.tokens_per_second)
    line = f"fastest here: {best.title}, {best.tokens_per_second / first:.2f} times as fast as transformers"
    if best.requested is None:
        return line
    return f"{line}; with the same text: {dense.title}, {dense.tokens_per_second / first:.2f} times"


def footnotes(options: argparse.Namespace, device: torch.device, repeated: bool) -> tuple[str, ...]:
    """Notes that explain the numbers."""
    every = "Every text was the same in all of its runs." if repeated else "TEXTS DIFFERED from run to run."
    threads = f"{device.type} with {torch.get_num_threads()} threads"
    notes = [
        "log-prob per token: mean log-probability (nats) of the written text under the dense model, higher is better.",
        "Speeds are ratios to transformers. Counted: 1 / net keep. Measured: tokens per second, the median of "
        f"{ROUNDS} runs in turn on {threads}, policy and KV refresh included, the prompt not. {every}",
    ]
    if options.controller == "fixed":
        notes.append("Controller: the fixed schedule, which treats all tokens alike. Give a policy with --policy.")
    return tuple(notes)
