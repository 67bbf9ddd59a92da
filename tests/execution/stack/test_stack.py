# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Steps that run as one program give what the modules of the base give."""

import copy
import gc
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sol_hf import FixedController
from sol_hf.execution.linear.operation import LINEAR
from sol_hf.execution.stack import stack
from sol_hf.execution.stack.stack import BaseStack
from support.bases import tiny_base
from support.cases import left_padded, prompts
from support.programs import CALL, WIDE, assert_same, logits_of, model_of


RECOGNISED = ["llama", "qwen2", "qwen3", "gemma", "phi3", "olmo2", "smollm3", "granite", "cohere"]
BUDGETS = [
    {},
    {"token_keep": 0.3},
    {"mlp_keep": 0.4},
    {"neuron_keep": 0.5},
    {"bits": 5},
    {"token_keep": 0.3, "mlp_keep": 0.4, "neuron_keep": 0.5, "bits": 8},
]


@pytest.mark.parametrize("family", RECOGNISED)
@pytest.mark.parametrize("budget", [BUDGETS[0], BUDGETS[-1]], ids=["dense", "joint"])
def test_on(family, budget, ran):
    model = model_of(tiny_base(family))
    assert_same(model, input_ids=prompts(2, 40), **budget)
    assert len(ran) >= CALL["max_new_tokens"] - 1


@pytest.mark.parametrize("criterion", ["quest", "sketch"])
@pytest.mark.parametrize("budget", BUDGETS, ids=lambda budget: "-".join(budget) or "dense")
@pytest.mark.parametrize("bits_backend", ["fake", "nested"])
def test_budget(budget, criterion, bits_backend, ran):
    rule = {"criterion": "sketch", "selection": "layer"} if criterion == "sketch" else {}
    model = model_of(tiny_base("llama", **WIDE), **rule)
    assert_same(model, input_ids=prompts(1, 80), bits_backend=bits_backend, kv_refresh=False, **budget)
    assert len(ran) >= CALL["max_new_tokens"] - 1


@pytest.mark.parametrize("lengths", [(1,), (13,), (58,), (3, 30), (60, 20, 70)], ids=str)
@pytest.mark.parametrize("rule", [{}, {"criterion": "sketch", "selection": "layer"}], ids=["quest", "sketch"])
def test_texts_of_a_few_tokens(lengths, rule, ran):
    """The means of the index of keys change while they are short."""
    model = model_of(tiny_base("llama", **WIDE), **rule)
    rows = [prompts(1, length, seed=length)[0] for length in lengths]
    assert_same(model, token_keep=0.3, kv_refresh=False, **left_padded(rows))
    assert len(ran) == CALL["max_new_tokens"] - (lengths == (1,))  # one token is a prefill


@pytest.mark.parametrize("bits", [[5, 8, 16, 5], [16, 16, 4, 8], [6, 5, 4, 6]])
def test_rows_may_read_different_numbers_of_bits(bits, ran):
    model = model_of(tiny_base("llama", **WIDE, vocab_size=96), bits=[4, 5, 6, 8, 16])
    rows = [prompts(1, length, seed=length)[0].clamp(max=95) for length in (70, 64, 83, 40)]
    options = dict(bits_backend="nested", kv_refresh=False, token_keep=0.3, **left_padded(rows))
    assert_same(model, bits=bits, **options)
    assert len(ran) == CALL["max_new_tokens"]


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma", "cohere"])
def test_in_bfloat16(family, ran):
    model = model_of(tiny_base(family, torch.bfloat16))
    exact = model_of(copy.deepcopy(model.base).float())
    call = dict(context_length=20, bits=16, token_keep=0.9, controller=FixedController())
    ids = prompts(1, 80)
    expected = exact.score(ids, backend="reference", **call).logprobs
    errors = [
        float((model.score(ids, backend=backend, **call).logprobs - expected).abs().mean())
        for backend in ("reference", "fast")
    ]
    assert len(ran) == 59  # nothing follows the last token
    assert errors[1] < 1.2 * errors[0] < 0.2


@settings(max_examples=12, deadline=None)
@given(
    lengths=st.lists(st.integers(2, 90), min_size=1, max_size=4),
    keep=st.sampled_from([0.3, 1.0]),
    bits=st.sampled_from([5, 8, 16]),
    rule=st.sampled_from([{}, {"anchor_pages": True}, {"criterion": "sketch", "selection": "group"}]),
)
def test_drawn_rows(lengths, keep, bits, rule):
    model = model_of(tiny_base("qwen3", **WIDE), **rule)
    rows = [prompts(1, length, seed=length)[0] for length in lengths]
    # With `"fake"`, a number on the border of two levels may be rounded either way.
    assert_same(model, token_keep=keep, bits=bits, bits_backend="nested", **left_padded(rows))


def test_rows_do_not_affect_each_other(ran):
    model, rows = model_of(tiny_base("llama")), [prompts(1, length, seed=length)[0] for length in (70, 83)]
    together = logits_of(model, "fast", token_keep=[0.3, 1.0], mlp_keep=0.4, **left_padded(rows))
    for row, keep in enumerate((0.3, 1.0)):
        alone = logits_of(model, "fast", token_keep=keep, mlp_keep=0.4, input_ids=rows[row][None])
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-4, rtol=1e-4)
    assert ran


def test_many_callers_at_once_get_what_each_gets_alone():
    model = model_of(tiny_base("qwen3"))
    calls = [
        dict(token_keep=keep, mlp_keep=0.4, input_ids=prompts(1, 30 + n, seed=n))
        for n, keep in enumerate((0.3, 1) * 4)
    ]
    alone = [logits_of(model, "fast", **call) for call in calls]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda call: logits_of(model, "fast", **call), calls))
    assert all(torch.equal(*pair) for pair in zip(alone, together, strict=True))


def test_a_score_replays_a_text(ran):
    model, ids = model_of(tiny_base("llama")), prompts(1, 40)
    controlled = dict(token_keep=0.3, neuron_keep=0.5, controller=FixedController(), backend="fast")
    output = model.generate(ids, **CALL, **controlled)
    number = len(ran)
    scored = model.score(output.sequences, context_length=39, return_logits=True, **controlled).logits
    assert len(ran) > number
    torch.testing.assert_close(
        scored[:, :10], torch.stack(output.logits, dim=1)[:, : scored.shape[1]], atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_number_of_threads_gives_the_same_bits(threads):
    model, before = model_of(tiny_base("llama")), torch.get_num_threads()
    options = dict(token_keep=0.3, mlp_keep=0.4, input_ids=prompts(2, 40))
    try:
        torch.set_num_threads(threads)
        first = logits_of(model, "fast", **options)
        assert torch.equal(first, logits_of(model, "fast", **options))
    finally:
        torch.set_num_threads(before)


def steps_by_modules(model, ran) -> bool:
    ran.clear()
    model.generate(prompts(1, 40), backend="fast", token_keep=0.3, controller=FixedController(), **CALL)
    return not ran


class TestStepsAside:
    """A base that computes something else than its structure says runs by its modules."""

    @pytest.fixture
    def model(self):
        return model_of(tiny_base("llama"))

    def test_on_an_unchanged_base_it_does_not(self, model, ran):
        assert not steps_by_modules(model, ran)

    @pytest.mark.parametrize("name", ["", "model", "model.layers.1", "model.layers.0.mlp.up_proj", "lm_head"])
    def test_with_hooks(self, model, name, ran):
        for register in ("register_forward_hook", "register_forward_pre_hook"):
            called = []
            handle = getattr(model.base.get_submodule(name), register)(lambda *_: called.append(1))  # noqa: B023
            assert steps_by_modules(model, ran) and called
            handle.remove()
        assert not steps_by_modules(model, ran)

    def test_with_another_forward(self, model, ran):
        layer = model.base.model.layers[0].self_attn.q_proj
        layer.forward = lambda x: nn.functional.linear(x, layer.weight) * 2
        assert steps_by_modules(model, ran)
        del layer.forward
        assert not steps_by_modules(model, ran)

    def test_with_another_module(self, model, ran):
        assert not steps_by_modules(model, ran)
        model.base.model.layers[0].mlp.down_proj = nn.Sequential(model.base.model.layers[0].mlp.down_proj)
        assert steps_by_modules(model, ran)

    def test_with_another_implementation_of_an_operation(self, model, ran):
        class Doubled(type(LINEAR["blas"])):
            order = 1

        LINEAR.register("doubled", Doubled())
        try:
            assert steps_by_modules(model, ran)
        finally:
            LINEAR.unregister("doubled")

    @pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "cohere2"])
    def test_on_bases_of_another_structure(self, family, ran):
        assert steps_by_modules(model_of(tiny_base(family)), ran)

    def test_where_a_layer_computes_something_else_than_its_names_say(self, ran):
        base = tiny_base("llama")
        base.model.layers[1].residual_multiplier = 0.5  # a number that its forward does not use
        assert steps_by_modules(model_of(base), ran)

    def test_under_the_reference(self, model, ran):
        model.generate(prompts(1, 40), backend="reference", token_keep=0.3, **CALL)
        assert not ran

    def test_for_small_bases_unless_asked_for(self, model, ran):
        model.generate(prompts(1, 40), backend="auto", token_keep=0.3, **CALL)
        assert not ran


class TestWeights:
    @pytest.mark.parametrize("bits_backend", ["fake", "nested"])
    def test_changed_in_place_or_replaced_they_count_from_then_on(self, bits_backend, ran):
        base = tiny_base("llama", **WIDE)
        model, options = (
            model_of(base),
            dict(bits=8, bits_backend=bits_backend, mlp_keep=0.4, input_ids=prompts(1, 40)),
        )
        before = logits_of(model, "fast", **options)
        with torch.no_grad():
            base.model.layers[0].mlp.up_proj.weight.mul_(1.5)
            base.model.layers[1].self_attn.q_proj.weight.data = base.model.layers[1].self_attn.q_proj.weight * 0.5
            base.model.norm.weight.mul_(1.1)
        assert not torch.allclose(logits_of(model, "fast", **options), before, atol=1e-2)
        assert_same(model, **options)
        assert ran

    def test_copies_can_be_freed(self):
        model = model_of(tiny_base("llama", **WIDE))
        options = dict(bits=8, bits_backend="nested", input_ids=prompts(1, 40))
        before = logits_of(model, "fast", **options)
        assert model.coverage().copied_bytes > 0
        model.drop_copies()
        gc.collect()
        assert model.coverage().copied_bytes == 0
        assert torch.equal(before, logits_of(model, "fast", **options))

    def test_the_base_is_untouched(self):
        base = tiny_base("llama")
        state, attributes = copy.deepcopy(base.state_dict()), set(vars(base.model.layers[0].mlp))
        logits_of(model_of(base), "fast", token_keep=0.3, input_ids=prompts(1, 40))
        assert all(torch.equal(value, state[name]) for name, value in base.state_dict().items())
        assert set(vars(base.model.layers[0].mlp)) == attributes

    def test_a_base_that_is_not_used_any_more_is_freed(self):
        base = tiny_base("llama")
        logits_of(model_of(base), "fast", token_keep=0.3, input_ids=prompts(1, 40))
        number = len(stack._STACKS)
        assert BaseStack.of(base)
        del base
        gc.collect()
        assert len(stack._STACKS) < number


class AtThird:
    """A streamer that does something when the third token comes."""

    def __init__(self, act):
        self.act, self.seen = act, 0

    def put(self, value):
        self.seen += 1
        if self.seen == 4:  # the prompt is put first
            self.act()

    def end(self):
        pass


class TestWithinACall:
    """`episode_length` is 6, so the changes come in the middle of an episode."""

    def test_hooks_are_called_from_the_next_step_on(self, ran):
        model, called = model_of(tiny_base("llama")), []
        layer = model.base.model.layers[0]
        streamer = AtThird(lambda: layer.register_forward_hook(lambda *_: called.append(1)))
        model.generate(prompts(1, 40), backend="fast", token_keep=0.3, streamer=streamer, **CALL)
        assert 0 < len(ran) <= 4 and len(called) >= CALL["max_new_tokens"] - 4

    def test_modules_that_are_replaced_run_from_the_next_episode_on(self, ran):
        model = model_of(tiny_base("llama"))
        mlp = model.base.model.layers[0].mlp
        streamer = AtThird(lambda: setattr(mlp, "down_proj", nn.Sequential(mlp.down_proj)))
        model.generate(prompts(1, 40), backend="fast", token_keep=0.3, streamer=streamer, **CALL)
        assert 0 < len(ran) <= 6

    def test_memory_of_weights_that_are_replaced_is_read_to_the_end_of_the_episode(self):
        model, options = model_of(tiny_base("llama")), dict(backend="fast", token_keep=0.3, **CALL)
        options["controller"] = FixedController()
        expected = model.generate(prompts(1, 40), **options)
        linear = model.base.model.layers[0].mlp.down_proj

        def replace():
            linear.weight.data = torch.full_like(linear.weight, 9.0)
            torch.full((1 << 20,), float("nan"))  # memory that was freed would be used again

        changed = model.generate(prompts(1, 40), streamer=AtThird(replace), **options)
        for before, now in list(zip(expected.logits, changed.logits, strict=True))[:6]:
            torch.testing.assert_close(now, before)
        assert not torch.allclose(changed.logits[-1], expected.logits[-1], atol=1e-2)
