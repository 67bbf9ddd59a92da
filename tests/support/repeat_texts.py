# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Prints the texts of equal calls, in a process of its own whose clock runs wild.

python tests/support/repeat_texts.py THREADS TIMES
"""

import json
import random
import sys
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sol_hf import FixedController, SOLConfig, SOLForCausalLM


SIZES = dict(
    vocab_size=997,
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=32,
    max_position_embeddings=1024,
    pad_token_id=None,
    eos_token_id=None,
    tie_word_embeddings=False,
)
"""Large enough for every fast path."""


def run_wild() -> None:
    """Every clock of Python shows what it likes, in every process something else."""
    drawn = random.SystemRandom()
    for name in ("perf_counter", "monotonic", "process_time", "thread_time", "time"):
        setattr(time, name, lambda: drawn.uniform(0, 1e9))
        setattr(time, f"{name}_ns", lambda: drawn.randrange(10**18))


def build() -> SOLForCausalLM:
    """A model whose texts depend on every bit: the largest two logits are near each other."""
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
    base.generation_config.pad_token_id = 0
    return SOLForCausalLM.from_base(base, SOLConfig(token_keep=[0.2, 0.6, 1], mlp_keep=[0.4, 0.7, 1], bits=[4, 16]))


def digests(model: SOLForCausalLM) -> list[str]:
    """Tokens and sums of the logits, to the bit, of a few calls: long and short, one row and several, and a sample."""
    found = []
    calls = [
        dict(rows=1, length=40, token_keep=0.4, mlp_keep=0.55, bits=10),
        dict(rows=3, length=20, token_keep=0.4),
        dict(rows=1, length=530, mlp_keep=0.5),
        dict(rows=1, length=40, backend="fast"),
        dict(rows=1, length=40, token_keep=0.4, mlp_keep=0.5, do_sample=True),
    ]
    for call in calls:
        rows, length = call.pop("rows"), call.pop("length")
        prompt = torch.randint(1, 997, (rows, length), generator=torch.Generator().manual_seed(1))
        settings = dict(do_sample=False, max_new_tokens=18, output_logits=True, return_dict_in_generate=True)
        torch.manual_seed(3)
        output = model.generate(
            prompt, **settings | call, controller=FixedController() if "backend" not in call else None
        )
        sums = [logits.double().abs().sum().item().hex() for logits in output.logits]
        found.append(json.dumps([output.sequences[:, length:].tolist(), sums]))
    return found


def main() -> None:
    """Runs the calls as often as the command line says."""
    run_wild()
    torch.set_num_threads(int(sys.argv[1]))
    model = build()
    sys.stdout.write(json.dumps([digests(model) for _ in range(int(sys.argv[2]))]) + "\n")


if __name__ == "__main__":
    main()
