# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""`model.warmup()`: after it, no call compiles, recognises or copies anything."""

import gc
import json
import os
import subprocess
import sys

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sol_hf import BudgetError, FixedController, SOLCache, SOLConfig, SOLForCausalLM
from sol_hf.execution.instrumentation import Instrumentation
from sol_hf.execution.stack import programs
from sol_hf.execution.stack.assembly import StackProgram
from sol_hf.execution.stack.cache_steps import CacheSteps
from support import repeat_texts
from support.bases import tiny_base
from support.cases import prompts, sol_model
from support.paths import PYTHON_PATH, SUPPORT


CALL = dict(max_new_tokens=4, do_sample=False, pad_token_id=0)
LARGE = dict(hidden_size=256, intermediate_size=512, num_hidden_layers=1, num_attention_heads=4, vocab_size=311)
"""Large enough for every copy of weights."""


def large_model(**levels) -> SOLForCausalLM:
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**LARGE, max_position_embeddings=1024, pad_token_id=0)).eval()
    return SOLForCausalLM.from_base(base, SOLConfig(policy_hidden_size=16, policy_num_heads=2, **levels))


def copies_of(model: SOLForCausalLM) -> list[int]:
    """All copies of weights that were made, each by its id."""
    parts = Instrumentation.of(model.base).step_parts
    return sorted(id(copy) for part in parts for copy in part.copies)


def test_a_call_after_it_imports_compiles_and_copies_nothing():
    """In a process of its own, whose first call would do all of that."""
    command = [sys.executable, str(SUPPORT / "after_warmup.py")]
    environment = os.environ | {"PYTHONPATH": PYTHON_PATH, "OMP_NUM_THREADS": "1"}
    outcome = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=True)
    found = json.loads(outcome.stdout.splitlines()[-1])
    assert found == {
        "imported": [],
        "compiled": 0,
        "copied": [],
        "has_copies": True,
        "has_kernels": True,
        "recognised": 0,
    }


@pytest.mark.parametrize(
    "options",
    [
        dict(mlp_keep=0.9),
        dict(neuron_keep=0.9),
        dict(bits=9, bits_backend="nested"),
        dict(bits=9, bits_backend="int8"),
        dict(bits=9, mlp_keep=0.9, bits_backend="nested"),
    ],
    ids=str,
)
def test_it_makes_the_copies_of_every_level_of_the_axes_that_are_asked_for(options):
    model = large_model(mlp_keep=[0.5, 0.9, 1.0], neuron_keep=[0.5, 1.0], bits=[8, 16], token_keep=[0.5, 1.0])
    model.warmup(**options)
    made, space = copies_of(model), model.action_space
    assert made
    axes = [axis for axis in ("mlp_keep", "neuron_keep", "bits") if axis in options]
    for action in space.table:
        levels = dict(zip(space.axis_names, action, strict=True))
        call = options | {axis: levels[axis] for axis in axes}
        model.generate(torch.full((1, 9), 7), controller=FixedController(), **CALL, **call)
    assert copies_of(model) == made


def test_an_axis_that_is_not_asked_for_needs_no_copy():
    model = large_model(mlp_keep=[0.5, 1.0], neuron_keep=[0.5, 1.0])
    assert model.warmup(token_keep=0.5).copied_bytes == 0
    assert model.warmup(backend="fast").copied_bytes == 0
    assert model.warmup(compute=1.0).copied_bytes == 0
    assert model.warmup().copied_bytes > 0


def test_stored_options_are_those_of_calls():
    model = large_model(bits=[8, 16])
    model.generation_config.bits, model.generation_config.bits_backend = 8, "nested"
    model.warmup()
    made = copies_of(model)
    assert made
    model.generate(torch.full((1, 9), 7), controller=FixedController(), **CALL)
    assert copies_of(model) == made


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(token_keep=0.01), "below the smallest level"),
        (dict(token_kep=0.5), "did you mean `token_keep`"),
        (dict(bits=8, bits_backend="nested", max_plane_bytes=1), "max_plane_bytes"),
        (dict(cuda_graphs=True), "needs a GPU"),
        (dict(compute=0.5), "needs a calibration table"),
    ],
    ids=str,
)
def test_what_generate_refuses_is_refused_before_any_compute(options, message, monkeypatch):
    model = large_model(token_keep=[0.5, 1.0], bits=[8, 16])

    def forward(**kwargs):
        raise AssertionError("there was compute")

    monkeypatch.setattr(model.base, "forward", forward)
    with pytest.raises(ValueError, match=message):
        model.warmup(**options)


def test_it_leaves_the_base_the_random_numbers_and_the_texts_as_they_are():
    model, again = repeat_texts.build(), repeat_texts.build()
    modules = {name: dict(vars(module)) for name, module in model.base.named_modules()}
    torch.manual_seed(5)
    before = torch.get_rng_state()
    model.warmup()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(vars(module).keys() == modules[name].keys() for name, module in model.base.named_modules())
    call = dict(token_keep=0.4, mlp_keep=0.5, bits=10, controller=FixedController(), **CALL)
    assert torch.equal(model.generate(torch.full((2, 40), 7), **call), again.generate(torch.full((2, 40), 7), **call))


@pytest.mark.parametrize("family", ["gpt_neox", "gemma3_text", "qwen3"])
def test_on_other_families(family):
    model = SOLForCausalLM.from_base(tiny_base(family))
    assert model.warmup().layer_count == model.coverage().layer_count
    model.warmup(bits=8, bits_backend="int8")
    model.warmup(token_keep=[0.5, 0.7])


@pytest.mark.parametrize(("family", "compiled"), [("llama", True), ("gpt_neox", False)])
def test_it_says_whether_steps_are_compiled(family, compiled):
    model = SOLForCausalLM.from_base(tiny_base(family))
    assert model.coverage().compiled_steps is None and "decode steps" not in str(model.coverage())
    found = model.warmup(backend="fast")
    assert found.compiled_steps is compiled and model.coverage().compiled_steps is compiled
    assert ("decode steps on the CPU: one compiled program" in str(found)) == compiled
    model.base.lm_head = torch.nn.Linear(*reversed(model.base.get_output_embeddings().weight.shape))
    assert family != "llama" or model.coverage().compiled_steps is None


def test_short_texts_and_few_positions():
    model = sol_model(max_position_embeddings=16)
    model.config.short_text_tokens = 60
    assert set(model.warmup(token_keep=0.5).layers) == {"token_keep", "mlp_keep", "bits"}


def caches() -> int:
    """Number of caches that are alive, also those of other tests."""
    gc.collect()
    return sum(type(thing) is SOLCache for thing in gc.get_objects())


def test_no_cache_is_kept():
    model, before = large_model(), caches()
    model.warmup()
    assert caches() <= before


def test_a_dense_call_says_nothing_of_a_policy_that_it_does_not_use(caplog):
    model = sol_model()
    model.warmup(backend="fast")
    model.generate(prompts(), backend="fast", **CALL)
    assert "never trained" not in caplog.text
    model.generate(prompts(), token_keep=0.5, **CALL)
    assert "never trained" in caplog.text


def test_an_impossible_budget_is_a_budget_error():
    with pytest.raises(BudgetError):
        sol_model().warmup(bits=2)


def test_lossless_has_drafted_and_checked_before_the_first_call(monkeypatch):
    model, lengths = sol_model(dtype=torch.float32), []
    own = model.base.forward

    def forward(input_ids=None, *args, **kwargs):
        lengths.append(input_ids.shape[1])
        return own(input_ids, *args, **kwargs)

    monkeypatch.setattr(model.base, "forward", forward)
    model.warmup(lossless=True)
    assert 4 in lengths and 1 in lengths and model.coverage().copied_bytes > 0


@pytest.mark.parametrize(
    ("dtype", "warm", "choice"),
    [
        (torch.float32, True, dict(do_sample=False)),
        (torch.bfloat16, True, dict(do_sample=True, temperature=0.8)),
        (torch.float32, False, dict(do_sample=False)),
    ],
    ids=["float32", "bfloat16-sampled", "cold"],
)
def test_drafts_in_a_long_text_put_no_program_together_after_it(dtype, warm, choice, monkeypatch):
    """Drafts read a share of the keys only of texts above 1,024 tokens; a warmup has no text as long as that."""
    torch.manual_seed(0)
    config = LlamaConfig(**repeat_texts.SIZES | dict(max_position_embeddings=2048))
    model, made, ran = SOLForCausalLM.from_base(LlamaForCausalLM(config).to(dtype).eval()), [], []
    if warm:
        model.warmup(lossless=True)
    monkeypatch.setattr(programs, "StackProgram", lambda *given: made.append(given[1]) or StackProgram(*given))
    own = CacheSteps.run
    monkeypatch.setattr(
        CacheSteps, "run", lambda self, plan, kind, *given: ran.append(kind) or own(self, plan, kind, *given)
    )
    copied = copies_of(model)
    ids = torch.arange(1100)[None] * 7 % 900 + 3
    model.generate(ids, lossless=3, max_new_tokens=14, pad_token_id=0, **choice)
    assert sum(kind.attention == "tokens" for kind in ran) >= 6
    drafts = [kind for kind in made if kind.tokens == 1]
    assert (not drafts and copies_of(model) == copied) if warm else drafts
