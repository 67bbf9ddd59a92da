# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The same call gives the same text, to the bit of its logits: again, in another process, whatever clocks show."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from support import repeat_texts
from support.paths import PYTHON_PATH, SUPPORT


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def start(times: int, threads: int = 1) -> subprocess.Popen:
    command = [sys.executable, str(SUPPORT / "repeat_texts.py"), str(threads), str(times)]
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": PYTHON_PATH}, stdout=subprocess.PIPE, text=True)


def results(process: subprocess.Popen) -> list[list[str]]:
    out, _ = process.communicate(timeout=280)
    assert process.returncode == 0
    return json.loads(out)


@pytest.mark.slow
def test_a_fresh_process_whose_clock_runs_wild_gives_the_texts_of_this_one(threads):
    fresh, model = start(times=1), repeat_texts.build()
    first, second = repeat_texts.digests(model), repeat_texts.digests(model)
    assert first == second == results(fresh)[0]
    assert len({json.dumps(json.loads(digest)[0]) for digest in first}) == len(first)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_three_processes_at_once_give_the_same_texts_twice_each(threads):
    processes = [start(times=2, threads=threads) for _ in range(3)]
    found = [digests for process in processes for digests in results(process)]
    assert len(found) == 6 and all(digests == found[0] for digests in found)


@pytest.mark.slow
def test_the_process_that_compiles_gives_the_texts_of_one_that_loads_its_code(tmp_path, monkeypatch, threads):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    compiled = results(start(times=1))
    assert list(tmp_path.rglob("*.nbc"))
    assert compiled == results(start(times=1))


@pytest.mark.slow
def test_other_numbers_of_threads_in_between_change_nothing(threads):
    expected, model = repeat_texts.digests(repeat_texts.build()), repeat_texts.build()
    torch.set_num_threads(2)  # also while copies of weights are made
    with_two = repeat_texts.digests(model)
    torch.set_num_threads(1)
    assert repeat_texts.digests(model) == expected
    torch.set_num_threads(2)
    assert repeat_texts.digests(model) == with_two


def test_texts_made_at_once_are_those_made_alone(threads):
    model = repeat_texts.build()
    prompts = [torch.randint(1, 997, (1, 40 + n), generator=torch.Generator().manual_seed(n)) for n in range(4)]
    settings = dict(do_sample=False, max_new_tokens=20, token_keep=0.4, mlp_keep=0.5)

    def text(prompt):
        torch.set_num_threads(1)  # it is kept per thread
        return model.generate(prompt, controller=repeat_texts.FixedController(), **settings)

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(text, prompts))
    assert all(torch.equal(found, text(prompt)) for found, prompt in zip(together, prompts, strict=True))


@pytest.mark.parametrize("options", [{}, {"backend": "fast"}, {"token_keep": 0.4, "mlp_keep": 0.5, "bits": 8}])
def test_greedy_texts_draw_no_random_number(options):
    model, before = repeat_texts.build(), torch.get_rng_state()
    model.generate(torch.full((1, 40), 7), do_sample=False, max_new_tokens=20, **options)
    assert torch.equal(torch.get_rng_state(), before)
