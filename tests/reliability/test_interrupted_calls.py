# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A call that is interrupted anywhere leaves base, model and later calls as they were."""

import _thread
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from sol_hf import FixedController, SOLForCausalLM
from support.cases import HALF, prompts, sol_model
from support.paths import ROOT


NEW = 16


@pytest.fixture(scope="module")
def model() -> SOLForCausalLM:
    return sol_model()


def text(model: SOLForCausalLM, **options) -> torch.Tensor:
    return model.generate(prompts(), max_new_tokens=NEW, do_sample=False, **{**HALF, **options})


def state(model: SOLForCausalLM) -> dict:
    """What a call changes on the base while it runs."""
    return {
        "attention": model.base.config._attn_implementation,
        "attributes": {name: sorted(vars(module)) for name, module in model.base.named_modules()},
        "hooks": {name: len(module._forward_pre_hooks) for name, module in model.base.named_modules()},
        "gradients": torch.is_grad_enabled(),
    }


class StopBy(StoppingCriteria):
    """Raises after some tokens."""

    def __init__(self, tokens: int, error: BaseException):
        self.left, self.error = tokens, error

    def __call__(self, input_ids, scores, **kwargs):
        self.left -= 1
        if not self.left:
            raise self.error
        return torch.zeros(len(input_ids), dtype=torch.bool)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), RuntimeError("out of memory")])
def test_an_error_at_every_step_leaves_the_base_clean(model, error):
    expected = text(model)
    before = state(model)
    for tokens in range(1, NEW, 3):
        with pytest.raises(type(error)):
            text(model, stopping_criteria=StoppingCriteriaList([StopBy(tokens, error)]))
        assert state(model) == before
    assert torch.equal(text(model), expected)


def interrupted_at_random(model: SOLForCausalLM, times: int, longest: float) -> int:
    """Interrupt calls from another thread, as Ctrl-C does; the number of calls that were hit."""
    draw, hit = random.Random(0), 0
    for _ in range(times):
        timer = threading.Timer(draw.uniform(0, longest), _thread.interrupt_main)
        try:
            timer.start()
            text(model)
            timer.join()
            time.sleep(0.001)
        except KeyboardInterrupt:
            hit += 1
        finally:
            timer.join()
    return hit


@pytest.fixture
def ctrl_c():
    """Ctrl-C raises KeyboardInterrupt, also in a process that a shell has started in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_at_any_moment(model):
    """Between any two instructions of Python, in setting up and clearing away too."""
    expected = text(model)
    before = state(model)
    began = time.perf_counter()
    text(model)
    longest = 1.05 * (time.perf_counter() - began)
    assert interrupted_at_random(model, 60, longest) > 15
    assert torch.equal(text(model), expected)
    assert state(model) == before


COMMAND = """
import signal, sys, threading
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, "tests")
from support.cases import HALF, prompts, sol_model
model = sol_model()
threading.Timer(0.5, lambda: print("running", flush=True)).start()
while True:
    model.generate(prompts(), max_new_tokens=64, do_sample=False, **HALF)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_process_at_once(number):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.Popen(
        [sys.executable, "-c", COMMAND], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert run.stdout.readline() == b"running\n"
    run.send_signal(number)
    _, said = run.communicate(timeout=30)
    if number == signal.SIGINT:
        assert run.returncode and said.split()[-1] == b"KeyboardInterrupt"
    else:
        assert run.returncode == -number


def test_score_is_interrupted_likewise(model, monkeypatch):
    ids, options = prompts(), dict(context_length=8, controller=FixedController(), **HALF)
    expected = model.score(ids, **options).logprobs
    before, layer = state(model), model.base.model.layers[1]
    forward = type(layer).forward
    with monkeypatch.context() as patch:
        calls = iter(range(9))

        def fail(self, *args, **kwargs):
            if next(calls, None) is None:
                raise KeyboardInterrupt
            return forward(self, *args, **kwargs)

        patch.setattr(type(layer), "forward", fail)
        with pytest.raises(KeyboardInterrupt):
            model.score(ids, **options)
    assert state(model) == before
    assert torch.equal(model.score(ids, **options).logprobs, expected)
