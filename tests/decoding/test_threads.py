# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""32 threads with 32 budgets on one model get what each gets alone, bit for bit, and leave the base as it was."""

import threading
from concurrent.futures import ThreadPoolExecutor

import torch

from fuzz.oracles import aftermath
from sol_hf import DriftController, FixedController, SOLForCausalLM
from support.bases import tiny_base
from support.cases import control, left_padded, prompts, sol_model


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


def test_conversations_of_several_turns():
    """Every thread has a cache of its own over the same model."""
    model, run = sol_model(), dict(max_new_tokens=4, do_sample=False, return_dict_in_generate=True)

    def talk(number: int) -> list[torch.Tensor]:
        cache, text, found = model.new_cache(), prompts(1, 10, seed=number), []
        for turn in range(3):
            budget = dict(token_keep=0.3 + number / 20, bits=4 + number)
            mask = torch.ones_like(text)
            output = model.generate(text, attention_mask=mask, past_key_values=cache, **run, **budget)
            found.append(output.sequences)
            text = torch.cat([output.sequences, prompts(1, 2, seed=100 + turn)], dim=1)
        return found

    alone = [talk(number) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(talk, range(8)))
    for own, expected in zip(together, alone, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(own, expected, strict=True))
