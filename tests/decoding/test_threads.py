# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""32 threads with 32 budgets on one model get what each gets alone, bit for bit, and leave the base as it was."""

import threading
from concurrent.futures import ThreadPoolExecutor

import torch

from fuzz.oracles import aftermath
from sol_hf import DriftController, FixedController, SOLForCausalLM
from support.bases import tiny_base
from support.cases import control, left_padded, prompts


THREADS = 32
CONTROLLERS = [lambda: None, FixedController, DriftController]


def call(model: SOLForCausalLM, number: int):
    """A call of its own: every sixth is dense, the others differ in budget, prompt, controller and refresh."""
    rows = [prompts(1, length=8 + (number + row) % 9, seed=number)[0] for row in range(1 + number % 2)]
    options: dict = dict(max_new_tokens=5, do_sample=False, return_dict_in_generate=True, output_logits=True)
    if number % 6:
        budget = dict(token_keep=0.2 + 0.02 * number, mlp_keep=1 - 0.015 * number, bits=3 + number % 13)
        options |= dict(budget, kv_refresh=bool(number % 4), backend=("fast", "reference")[number % 2])
        options["controller"] = CONTROLLERS[number % 3]()
    output = model.generate(**left_padded(rows), **options)
    return output.sequences, torch.stack(output.logits), getattr(output, "actions", output.sequences)


def test_as_alone():
    model = control(tiny_base("gemma3_text"), episode_length=3)
    before = aftermath.Snapshot.of(model.base)
    alone = [call(model, number) for number in range(THREADS)]
    barrier = threading.Barrier(THREADS)

    def together(number: int):
        barrier.wait(timeout=60)
        return call(model, number)

    with ThreadPoolExecutor(THREADS) as pool:
        results = list(pool.map(together, range(THREADS)))
    for number, (own, expected) in enumerate(zip(results, alone, strict=True)):
        for value, other in zip(own, expected, strict=True):
            assert torch.equal(value, other), f"thread {number}"
    aftermath.check(before, model.base, "after the threads")
