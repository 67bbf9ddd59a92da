# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Linear layers of decode steps by oneDNN and compiled code: equal products, in steps only, with clean-up."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sol_hf import ScheduleController
from sol_hf.execution.instrumentation import Instrumentation
from sol_hf.execution.linear import onednn, step_linear
from sol_hf.execution.linear.onednn import has_onednn, multiply
from sol_hf.execution.linear.operation import LINEAR, LinearCall
from sol_hf.execution.linear.step_linear import StepLinear, supports
from sol_hf.execution.plan import RefreshPlan, active_forward
from sol_hf.kernels.cpu import compilation
from sol_hf.kernels.cpu import linear as compiled_linear
from support.bases import FAMILIES, tiny_base
from support.cases import HALF, constant_schedule, control, prompts


pytestmark = [
    pytest.mark.skipif(not has_onednn(), reason="torch without oneDNN"),
    pytest.mark.skipif(not supports(torch.ones(1, 4), torch.ones(3, 4)), reason="another processor"),
]
needs_kernel = pytest.mark.skipif(not compilation.loads("numba_linear"), reason="numba is not installed")


@pytest.fixture
def products(monkeypatch):
    """Shapes of the inputs that oneDNN or compiled code multiplied; all weights are large enough."""
    seen = []

    def noting(function):
        def noted(x, weight, bias):
            seen.append(tuple(x.shape))
            return function(x, weight, bias)

        return noted

    monkeypatch.setattr(step_linear, "LEAST_WEIGHTS", 1)
    monkeypatch.setattr(onednn, "multiply", noting(multiply))
    monkeypatch.setattr(compiled_linear, "multiply", noting(compiled_linear.multiply))
    return seen


@settings(max_examples=40, deadline=None)
@given(
    lines=st.sampled_from([(1,), (3, 1), (2, 5), (40,)]),
    channels=st.integers(1, 70),
    outputs=st.integers(1, 70),
    bias=st.booleans(),
    seed=st.integers(0, 9),
)
def test_products_equal_those_of_torch(lines, channels, outputs, bias, seed):
    torch.manual_seed(seed)
    layer, x = nn.Linear(channels, outputs, bias=bias), torch.randn(*lines, channels)
    with torch.no_grad():
        assert supports(x, layer.weight)
        torch.testing.assert_close(multiply(x, layer.weight, layer.bias), layer(x), atol=1e-5, rtol=1e-5)


@needs_kernel
@settings(max_examples=80, deadline=None)
@given(
    lines=st.one_of(st.integers(1, 32).map(lambda n: (n,)), st.sampled_from([(3, 1), (2, 16)])),
    vectors=st.one_of(st.integers(1, 4), st.sampled_from([47, 48, 49, 97])),
    outputs=st.one_of(st.integers(1, 120), st.just(48)),
    bias=st.booleans(),
    is_strided=st.booleans(),
    threads=st.integers(1, 2),
    dtype=st.sampled_from(list(compiled_linear.MOST_TOKENS)),
    seed=st.integers(0, 9),
)
def test_compiled_products_equal_those_of_torch(lines, vectors, outputs, bias, is_strided, threads, dtype, seed):
    torch.manual_seed(seed)
    channels = 16 * vectors
    layer = nn.Linear(channels, outputs, bias=bias).to(dtype)
    x = torch.randn(*lines, 2 * channels)[..., ::2] if is_strided else torch.randn(*lines, channels)
    x = x.to(dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            is_small = x.numel() <= compiled_linear.MOST_TOKENS[dtype] * channels
            assert compiled_linear.supports(x, layer.weight) == is_small
            found, expected = compiled_linear.multiply(x, layer.weight, layer.bias), layer.double()(x.double())
    finally:
        torch.set_num_threads(before)
    assert found.dtype == dtype
    rounding = {torch.float32: 1e-5, torch.bfloat16: 2**-8}[dtype]  # of one number, once
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=rounding)


@needs_kernel
@settings(max_examples=30, deadline=None)
@given(lines=st.integers(2, 20), vectors=st.integers(1, 99), outputs=st.integers(1, 60))
def test_a_line_is_multiplied_alone_as_among_others(lines, vectors, outputs):
    x, weight = torch.randn(lines, 16 * vectors), torch.randn(outputs, 16 * vectors)
    together = compiled_linear.multiply(x, weight, None)
    alone = torch.cat([compiled_linear.multiply(x[n : n + 1], weight, None) for n in range(lines)])
    assert torch.equal(together, alone)


def usable(x: torch.Tensor, weight: torch.Tensor) -> list[str]:
    """Names of the implementations that can multiply, in their order."""
    return list(LINEAR.usable(LinearCall(x, weight, None)))


@needs_kernel
@pytest.mark.parametrize("lines, channels", [(33, 16), (1, 17), (1, 4)])
def test_what_the_kernel_leaves_to_onednn(lines, channels):
    x, weight = torch.ones(lines, channels), torch.ones(3, channels)
    assert usable(x, weight) == ["blas", "onednn"]


@needs_kernel
def test_bfloat16_is_compiled_for_compiled_linear_only():
    weight = torch.ones(3, 16, dtype=torch.bfloat16)
    found = [usable(torch.ones(tokens, 16, dtype=torch.bfloat16), weight) for tokens in (8, 9)]
    assert found == [["blas", "compiled"], ["blas"]]


class Subclass(torch.Tensor):
    """A tensor class for weights with another storage format."""


@pytest.mark.parametrize(
    "x, weight",
    [
        (torch.ones(1, 4, dtype=torch.float16), torch.ones(3, 4, dtype=torch.float16)),
        (torch.ones(1, 4, dtype=torch.bfloat16), torch.ones(3, 4)),
        (torch.ones(1, 4), torch.ones(4, 3).t()),
        (torch.ones(1, 4, device="meta"), torch.ones(3, 4, device="meta")),
        (torch.ones(1, 4, requires_grad=True), torch.ones(3, 4)),
        (torch.ones(1, 4), torch.ones(3, 4).as_subclass(Subclass)),
    ],
    ids=["float16", "two dtypes", "not contiguous", "another device", "gradient", "subclass"],
)
def test_what_is_left_to_torch(x, weight):
    assert not supports(x, weight)


def test_autocast_is_left_to_torch():
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert not supports(torch.ones(1, 4), torch.ones(3, 4))


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_equals_the_reference(family, products, by_modules):
    model = control(tiny_base(family))
    arguments = {"max_new_tokens": 9, "output_logits": True, "return_dict_in_generate": True, **HALF, "bits": None}
    expected = model.generate(prompts(2), backend="reference", **arguments)
    assert not products
    found = model.generate(prompts(2), backend="fast", **arguments)
    has_linear_layers = any(type(module) is nn.Linear for module in model.base.modules())
    assert bool(products) == has_linear_layers
    torch.testing.assert_close(torch.stack(found.logits), torch.stack(expected.logits), atol=1e-4, rtol=1e-4)


def test_prompts_are_left_to_the_base(products, by_modules):
    model = control(tiny_base("llama"))
    model.generate(prompts(2), backend="fast", max_new_tokens=2, kv_refresh=False, **HALF)
    assert {shape[1] for shape in products} == {1}


def test_a_refresh_is_not(products):
    model = control(tiny_base("llama"))
    steps = model.config.episode_length
    schedule = ScheduleController(constant_schedule(model, "cheapest", 2 * steps))
    model.generate(prompts(2), controller=schedule, max_new_tokens=steps + 2, min_new_tokens=steps + 2)
    assert steps in {shape[1] for shape in products}


def test_a_refresh_under_fast_is_not(products, by_modules):
    model = control(tiny_base("llama"))
    steps = model.config.episode_length
    arguments = {"backend": "fast", "max_new_tokens": steps + 2, "min_new_tokens": steps + 2}
    model.generate(prompts(2), **arguments, **HALF)
    assert steps in {shape[1] for shape in products}


def test_many_tokens_are_left_to_torch(products):
    layer = StepLinear(nn.Linear(4, 3))
    with torch.no_grad(), active_forward(refresh=RefreshPlan(cache=None)):
        for lines in (step_linear.MOST_TOKENS, step_linear.MOST_TOKENS + 1, 0):
            assert layer(torch.ones(lines, 4)).shape == (lines, 3)
    assert products == [(step_linear.MOST_TOKENS, 4)]


def test_without_a_step_the_layer_is_its_own(products):
    layer = nn.Linear(4, 3)
    expected = layer(torch.ones(2, 4))
    assert torch.equal(StepLinear(layer)(torch.ones(2, 4)), expected) and expected.requires_grad
    with active_forward():
        assert torch.equal(StepLinear(layer)(torch.ones(2, 4)), expected)
    assert not products


def test_nothing_stays_on_the_base(products):
    base = tiny_base("llama")
    before = {name: dict(vars(module)) for name, module in base.named_modules()}
    with pytest.raises(RuntimeError, match="stop"), Instrumentation.of(base):
        assert isinstance(vars(base.lm_head)["forward"], StepLinear)
        raise RuntimeError("stop")
    assert {name: dict(vars(module)) for name, module in base.named_modules()} == before


def test_a_replaced_forward_stays(products):
    base = tiny_base("llama")
    own = base.lm_head.forward
    base.lm_head.forward = own
    with Instrumentation.of(base):
        assert vars(base.lm_head)["forward"] is own
    assert vars(base.lm_head)["forward"] is own
