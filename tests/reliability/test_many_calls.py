# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Many calls, many threads, other numbers of threads: the same texts, and no memory that grows."""

import gc
import itertools
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import torch

from sol_hf import FixedController, SOLForCausalLM
from support.cases import HALF, prompts, sol_model


NEW = 6


@pytest.fixture(scope="module")
def model() -> SOLForCausalLM:
    return sol_model(num_hidden_layers=1)


def text(model: SOLForCausalLM, seed: int = 1, **options) -> torch.Tensor:
    return model.generate(prompts(seed=seed), max_new_tokens=NEW, do_sample=False, **{**HALF, **options})


def resident() -> float:
    """Memory of this process in MiB."""
    gc.collect()
    return psutil.Process(os.getpid()).memory_info().rss / 2**20


def calls(model: SOLForCausalLM, number: int) -> None:
    """Calls of every kind, one after the other."""
    ids = prompts(rows=1, length=10)
    for place in range(number):
        kind = place % 4
        if kind == 0:
            model.generate(ids, max_new_tokens=2, do_sample=False, **HALF)
        elif kind == 1:
            model.generate(ids, max_new_tokens=2, do_sample=False)
        elif kind == 2:
            model.score(ids, context_length=7, controller=FixedController(), **HALF)
        else:
            cache = model.new_cache()
            model.generate(ids, max_new_tokens=2, do_sample=False, past_key_values=cache, **HALF)


@pytest.mark.slow
def test_memory_is_flat_over_two_thousand_calls(model):
    calls(model, 200)  # code is compiled, pools of memory are filled
    sizes, objects = [resident()], len(gc.get_objects())
    for _ in range(4):
        calls(model, 500)
        sizes.append(resident())
    # A leak grows all the time; the allocator takes its memory in a few steps.
    grown = [after - before for before, after in itertools.pairwise(sizes)]
    assert min(grown) < 0.5, f"memory grows by {grown} MiB in 500 calls each"
    assert sum(grown) < 16, f"{sum(grown):.1f} MiB more after 2,000 calls"
    more = len(gc.get_objects()) - objects
    assert more < 2000, f"{more} objects more after 2,000 calls"


def test_calls_leave_no_objects_behind(model):
    """The short form of the test above: what a call allocates is gone after it."""
    calls(model, 8)
    gc.collect()
    before = len(gc.get_objects())
    calls(model, 40)
    gc.collect()
    assert len(gc.get_objects()) - before < 100


@pytest.mark.slow
def test_two_hundred_threads_get_their_own_texts(model):
    alone = [text(model, seed) for seed in range(20)]
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(200) as pool:
            found = list(pool.map(lambda place: text(model, place % 20), range(200)))
    finally:
        torch.set_num_threads(before)
    for place, ids in enumerate(found):
        assert torch.equal(ids, alone[place % 20])
    assert "forward" not in vars(model.base.model.layers[0].mlp)


def test_sixteen_threads_with_and_without_a_budget(model):
    expected = {None: text(model, token_keep=None, mlp_keep=None, bits=None), 8: text(model)}
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(16) as pool:
            runs = [pool.submit(text, model, **({} if place % 2 else dict.fromkeys(HALF))) for place in range(32)]
            for place, run in enumerate(runs):
                assert torch.equal(run.result(), expected[8 if place % 2 else None])
    finally:
        sys.setswitchinterval(switch)


@pytest.mark.parametrize("backend", ["reference", "fast"])
def test_the_number_of_threads_may_change_between_calls(backend):
    single = sol_model(dtype=torch.float32, num_hidden_layers=1)
    before = torch.get_num_threads()
    texts = []
    try:
        for threads in (1, 2, 1):
            torch.set_num_threads(threads)
            texts.append(text(single, backend=backend))
    finally:
        torch.set_num_threads(before)
    assert texts[2].equal(texts[0]), "the same number of threads gives the same text"
    assert all(ids.shape == texts[0].shape for ids in texts)
