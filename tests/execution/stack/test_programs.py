# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Programs are put together once for a base, whatever caches they run over, and each runs in one thread at a time."""

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from sol_hf import FixedController
from sol_hf.cache.sketch_index import SketchIndex
from sol_hf.execution.mlp.weight_copy import Fingerprint
from sol_hf.execution.stack import programs
from sol_hf.execution.stack.assembly import StackProgram
from support.bases import tiny_base
from support.cases import prompts
from support.programs import CALL, WIDE, logits_of, model_of


CALLS = [dict(bits=8, bits_backend="nested"), dict(token_keep=0.3, kv_refresh=True), dict()]


@pytest.fixture
def made(monkeypatch):
    """The programs that are put together, in order."""
    found = []

    def make(*arguments):
        found.append(StackProgram(*arguments))
        return found[-1]

    monkeypatch.setattr(programs, "StackProgram", make)
    return found


@pytest.mark.parametrize("options", CALLS)
def test_a_second_text_puts_no_program_together(options, made):
    model = model_of(tiny_base("llama", **WIDE), criterion="sketch", selection="layer")
    first = logits_of(model, "fast", inputs=prompts(1, 70), **options)
    number = len(made)
    again = logits_of(model, "fast", inputs=prompts(1, 70), **options)
    assert number and len(made) == number and torch.equal(first, again)


def test_threads_do_not_share_a_running_program(made):
    model = model_of(tiny_base("llama", **WIDE))
    texts = [prompts(1, 20, seed=seed) for seed in range(4)]
    alone = [logits_of(model, "fast", inputs=text) for text in texts]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda text: logits_of(model, "fast", inputs=text), texts * 3))
    assert all(torch.equal(one, other) for one, other in zip(alone * 3, together, strict=True))
    assert len(made) <= 5


def test_programs_that_were_not_used_for_long_are_dropped(made, monkeypatch):
    monkeypatch.setattr(programs, "MOST_KEPT", 1)
    model = model_of(tiny_base("llama", **WIDE))
    logits_of(model, "fast", inputs=prompts(1, 8))
    dropped = weakref.ref(made[-1])
    made.clear()
    logits_of(model, "fast", inputs=prompts(2, 8))
    gc.collect()
    assert dropped() is None and len(made) == 1


def test_an_exception_in_a_step_leaves_its_program_out(made, monkeypatch):
    model = model_of(tiny_base("llama", **WIDE))
    expected, before = logits_of(model, "fast", inputs=prompts(1, 8)), len(made)
    with monkeypatch.context() as patch:
        patch.setattr(StackProgram, "set_caches", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            logits_of(model, "fast", inputs=prompts(1, 8))
    assert torch.equal(logits_of(model, "fast", inputs=prompts(1, 8)), expected) and len(made) == before + 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_first_step_encodes_all_keys_as_the_reference_does(dtype):
    """A prompt's keys are encoded by the program, with all of their padding."""
    model = model_of(tiny_base("llama", **WIDE).to(dtype), criterion="sketch", selection="layer", index_bits=4)
    text, mask = prompts(2, 90), torch.ones(2, 90, dtype=torch.long)
    mask[1, :7] = 0
    options = dict(token_keep=0.3, kv_refresh=False, attention_mask=mask, controller=FixedController())
    cache = model.generate(text, backend="fast", **{**CALL, **options, "max_new_tokens": 2}).past_key_values
    for layer in cache.layers:
        own, made = SketchIndex(4), layer.made_sketch
        own.update(layer.keys[:, :, : made.tokens], made.tokens, torch.tensor([0, 7]), (0, 7))
        assert made.tokens >= 90 and torch.equal(own.packed, made.packed[:, :, : made.tokens])
        assert torch.equal(own.scale, made.scale[:, :, : made.tokens])


def test_planes_are_compared_with_the_weights_once_a_call(made, monkeypatch):
    """To compare those of all layers takes as long as several steps; a program that is put together does not do it."""
    model, looked = model_of(tiny_base("llama", **WIDE)), []
    options = dict(bits=8, bits_backend="nested", kv_refresh=False)
    logits_of(model, "fast", inputs=prompts(1, 20), **options)
    own = Fingerprint.of.__func__
    monkeypatch.setattr(Fingerprint, "of", classmethod(lambda cls, weight: looked.append(1) or own(cls, weight)))
    logits_of(model, "fast", inputs=prompts(1, 20), **options)
    once, programs_before = len(looked), len(made)
    looked.clear()
    logits_of(model, "fast", inputs=prompts(3, 20), **options)
    assert len(made) > programs_before and len(looked) == once > 0
