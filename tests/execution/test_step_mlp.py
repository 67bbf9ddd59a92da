# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Fast paths of the MLP against plain torch: the same channels and roundings to the bit, products up to rounding.

Products in float32 agree to 1e-5 of the largest output. In bfloat16 the fast path keeps float32 between the
projections and is the nearer to the exact result; both are within 2% of the largest output of each other.
"""

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing._internal.two_tensor import TwoTensor

from sol_hf import ScheduleController, SOLConfig, UnsupportedAxisError
from sol_hf.cache.sol_cache import SOLCache
from sol_hf.execution.attention.step import numba_pages
from sol_hf.execution.instrumentation import Instrumentation
from sol_hf.execution.mlp.discovery import find_mlps
from sol_hf.execution.mlp.int8 import Int8Linear, Int8MLP, quantize_rows
from sol_hf.execution.mlp.kept_call import keep_channels
from sol_hf.execution.mlp.kept_channels import input_major
from sol_hf.execution.mlp.kept_channels.input_major import InputMajorMLP
from sol_hf.execution.mlp.parts import ACTIVATIONS, MLPParts, find_parts
from sol_hf.execution.mlp.step_mlp import StepMLP
from sol_hf.execution.mlp.weight_copy import SAMPLES, Fingerprint, sample_stride
from sol_hf.execution.plan import StepPlan, active_forward
from sol_hf.kernels.cpu import sparse_mlp
from sol_hf.selection.channels import keep_top_channels, kept_channels, kept_count
from sol_hf.selection.quantizers import fake_quantize
from sol_hf.selection.rule import SelectionRule
from support.bases import tiny_base
from support.cases import HALF, constant_schedule, control, prompts, sol_model


DTYPES = [torch.float32, torch.bfloat16]
CLOSE = {torch.float64: 1e-6, torch.float32: 1e-5, torch.bfloat16: 0.02}
GATED, PLAIN = ["llama", "qwen3", "gemma", "phi3", "olmo2", "cohere"], ["gpt_neox", "phi", "starcoder2"]
FAMILIES_WITH_PARTS = [*GATED, "gpt_neox", "phi"]
dtypes = st.sampled_from(DTYPES)


@pytest.fixture
def without_numba(monkeypatch):
    monkeypatch.setattr(sparse_mlp, "has_numba", lambda: False)


def assert_close(found, expected, dtype):
    assert found.shape == expected.shape
    scale = expected.abs().max().item()
    torch.testing.assert_close(found.float(), expected.float(), atol=CLOSE[dtype] * max(scale, 1e-6), rtol=0)


def drawn(shape, dtype, seed, levels=None):
    """Random numbers; with `levels`, of so few magnitudes that many are equal."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return (x if levels is None else (x * levels).round() / levels).to(dtype)


class TestChoiceAndRounding:
    @settings(max_examples=60, deadline=None)
    @given(
        dtype=dtypes,
        rows=st.integers(1, 4),
        tokens=st.integers(1, 2),
        channels=st.integers(1, 70),
        keep=st.lists(st.floats(0.01, 1.0), min_size=4, max_size=4),
        levels=st.sampled_from([None, 1, 2]),
        seed=st.integers(0, 10**6),
    )
    def test_the_channels_are_those_of_the_reference(self, dtype, rows, tokens, channels, keep, levels, seed):
        x, fraction = drawn((rows, tokens, channels), dtype, seed, levels), torch.tensor(keep[:rows])
        found = sparse_mlp.keep_top_channels(x, fraction)
        assert torch.equal(found.x, keep_top_channels(x, fraction))
        expected = keep_channels(x, kept_channels(x, fraction))
        assert torch.equal(found.x, expected.x) and torch.equal(found.listed, expected.listed)

    @settings(max_examples=60, deadline=None)
    @given(
        dtype=dtypes,
        rows=st.integers(1, 4),
        channels=st.integers(1, 70),
        bits=st.lists(st.integers(2, 16), min_size=4, max_size=4),
        scale=st.sampled_from([0.0, 1e-12, 1.0, 1e4]),
        seed=st.integers(0, 10**6),
    )
    def test_the_roundings_are_those_of_the_reference(self, dtype, rows, channels, bits, scale, seed):
        x, bits = drawn((rows, 1, channels), dtype, seed, 4) * scale, torch.tensor(bits[:rows]).float()
        assert torch.equal(sparse_mlp.fake_quantize(x, bits), fake_quantize(x, bits))

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_numbers_that_are_none(self, dtype):
        x = torch.tensor([[[1.0, float("nan"), 2.0]], [[1.0, float("inf"), -2.0]]]).to(dtype)
        bits = torch.tensor([4.0, 4.0])
        found, expected = sparse_mlp.fake_quantize(x, bits), fake_quantize(x, bits)
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)

    @pytest.mark.parametrize("channels", [32, 50, 576, 2048])
    def test_every_count(self, channels):
        fraction = torch.arange(1, 101) / 100
        x = torch.arange(1.0, channels + 1).flip(0).expand(100, 1, channels)
        kept = sparse_mlp.keep_top_channels(x, fraction).x
        assert torch.equal(kept.ne(0).sum(dim=-1).squeeze(1), kept_count(fraction, channels))


def random_parts(channels, width, outputs, dtype, activation, gated, biased, seed):
    shapes = [(width, channels), (width, channels), (outputs, width)]
    gate, up, down = (drawn(shape, dtype, seed + n) / shape[1] ** 0.5 for n, shape in enumerate(shapes))
    biases = tuple(drawn((len(w),), dtype, seed + 7) if biased else None for w in (gate, up, down))
    biases = biases if gated else (biases[0], None, biases[2])
    return MLPParts(gate, up if gated else None, down, biases, activation, {})


class TestProduct:
    @settings(max_examples=60, deadline=None)
    @given(
        dtype=dtypes,
        rows=st.integers(1, 5),
        sizes=st.tuples(st.integers(1, 40), st.integers(1, 70), st.integers(1, 40)),
        keep=st.lists(st.floats(0.02, 1.0), min_size=5, max_size=5),
        activation=st.sampled_from(sorted(ACTIVATIONS)),
        gated=st.booleans(),
        biased=st.booleans(),
        numba=st.booleans(),
        seed=st.integers(0, 10**6),
    )
    def test_equals_the_masked_product(self, dtype, rows, sizes, keep, activation, gated, biased, numba, seed):
        parts = random_parts(*sizes, dtype, activation, gated, biased, seed)
        x, fraction = drawn((rows, 1, sizes[0]), dtype, seed, 4), torch.tensor(keep[:rows])
        with pytest.MonkeyPatch.context() as patch:
            if not numba:
                patch.setattr(sparse_mlp, "has_numba", lambda: False)
            found = InputMajorMLP(parts)(keep_channels(x, kept_channels(x, fraction)))
        assert_close(found, parts(keep_top_channels(x, fraction)), dtype)

    @pytest.mark.parametrize("threads", [1, 2, 3])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_blocks_and_threads(self, dtype, threads):
        parts = random_parts(96, 3200, 48, dtype, "silu", True, False, 3)
        x = keep_channels(drawn((2, 1, 96), dtype, 4), torch.rand(2, 1, 96) < 0.5)
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(threads)
            found = InputMajorMLP(parts)(x)
        finally:
            torch.set_num_threads(before)
        assert_close(found, parts(x.x), dtype)

    def test_the_fast_path_is_nearer_to_the_exact_result_in_bfloat16(self):
        parts = random_parts(256, 512, 256, torch.bfloat16, "silu", True, False, 3)
        x = keep_channels(drawn((4, 1, 256), torch.bfloat16, 4), torch.rand(4, 1, 256) < 0.5)
        exact = MLPParts(*(w.double() for w in (parts.gate, parts.up, parts.down)), parts.biases, "silu", {})
        errors = [(y.double() - exact(x.x.double())).square().mean() for y in (InputMajorMLP(parts)(x), parts(x.x))]
        assert errors[0] < errors[1]

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_sums_do_not_go_by_the_default_dtype(self, dtype):
        parts = random_parts(96, 3200, 48, dtype, "silu", True, False, 3)
        x = keep_channels(drawn((2, 1, 96), dtype, 4), torch.rand(2, 1, 96) < 0.5)
        expected, before = parts(x.x), torch.get_default_dtype()
        try:
            torch.set_default_dtype(torch.bfloat16)
            found = InputMajorMLP(parts)(x)
        finally:
            torch.set_default_dtype(before)
        assert_close(found, expected, dtype)

    def test_memory(self):
        parts = random_parts(24, 40, 24, torch.bfloat16, "silu", True, False, 3)
        assert InputMajorMLP(parts).nbytes == 2 * 24 * 40 * 2
        assert Int8MLP(parts).nbytes == 3 * 24 * 40 + 4 * (40 + 40 + 24)


class TestParts:
    @pytest.mark.parametrize("family", FAMILIES_WITH_PARTS)
    def test_found(self, family):
        for mlp in find_mlps(tiny_base(family)):
            parts = find_parts(mlp)
            assert parts is not None and (parts.up is not None) == (family in GATED)

    def test_not_found_in_another_layout(self):
        assert all(find_parts(mlp) is None for mlp in find_mlps(tiny_base("gpt2")))

    def test_names_alone_do_not_count(self):
        (mlp, _) = find_mlps(tiny_base("llama"))

        class Scaled(type(mlp)):
            def forward(self, x):
                return 1.5 * super().forward(x)

        mlp.__class__ = Scaled
        assert find_parts(mlp) is None

    def test_nobody_else_may_look_on(self):
        mlp, other = find_mlps(tiny_base("llama"))
        mlp.gate_proj.register_forward_hook(lambda *_: None)
        other.up_proj.forward = other.up_proj.forward
        assert find_parts(mlp) is None and find_parts(other) is None

    def test_nor_at_the_activation(self):
        mlp, _ = find_mlps(tiny_base("llama"))
        mlp.act_fn = torch.nn.SiLU()
        assert find_parts(mlp) is not None
        mlp.act_fn.register_forward_hook(lambda *_: None)
        assert find_parts(mlp) is None

    @pytest.mark.parametrize("activation", ["relu6", "gelu_10"])
    def test_an_activation_that_cuts_off_large_values_is_another(self, activation):
        assert find_parts(find_mlps(tiny_base("llama", hidden_act=activation))[0]) is None

    @pytest.mark.parametrize("name", ["weight", "bias"])
    def test_tensors_of_another_class_may_have_no_memory(self, name):
        (mlp, _) = find_mlps(tiny_base("llama", mlp_bias=True))
        tensor = getattr(mlp.up_proj, name).detach()
        setattr(mlp.up_proj, name, torch.nn.Parameter(TwoTensor(tensor, tensor), requires_grad=False))
        assert find_parts(mlp) is None

    def test_projections_of_two_dtypes_are_not_mixed(self):
        (mlp, _) = find_mlps(tiny_base("llama"))
        mlp.down_proj.bfloat16()
        assert find_parts(mlp) is None


def plan_of(backend, mlp_keep=None, bits=None, bits_backend="fake"):
    settings_of = {"mlp_keep": mlp_keep, "bits": bits}
    tensors = {name: torch.tensor(value) for name, value in settings_of.items() if value is not None}
    cache = SOLCache(tiny_base("llama").config, SOLConfig().action_space)
    return StepPlan(cache=cache, rule=SelectionRule(), levels=tensors, backend=backend, bits_backend=bits_backend)


@pytest.fixture
def mlp():
    """A tiny MLP, installed."""
    mlp = StepMLP(find_mlps(tiny_base("llama"))[0])
    mlp.install()
    yield mlp
    mlp.remove()


class TestInstalled:
    @pytest.mark.parametrize("backend", ["auto", "fast"])
    @pytest.mark.parametrize("family", [*GATED, *PLAIN, "gpt2"])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_every_family(self, family, dtype, backend):
        mlp, x = StepMLP(find_mlps(tiny_base(family, dtype))[1]), drawn((3, 1, 32), dtype, 5)
        settings_of = ([0.4, 0.9, 1.0], [16.0, 16.0, 16.0])
        mlp.install()
        with torch.no_grad():
            with active_forward(plan_of("reference", *settings_of)):
                expected = mlp.module(x)
            with active_forward(plan_of(backend, *settings_of)):
                found = mlp.module(x)
        mlp.remove()
        assert_close(found, expected, dtype)

    @pytest.mark.parametrize("backend", ["reference", "auto", "fast"])
    def test_the_reference_is_masks_around_the_own_forward(self, mlp, backend):
        x, keep, bits = drawn((2, 1, 32), torch.float32, 5), [0.4, 0.7], [4.0, 16.0]
        own = type(mlp.module).forward
        expected = fake_quantize(own(mlp.module, keep_top_channels(x, torch.tensor(keep))), torch.tensor(bits))
        with torch.no_grad(), active_forward(plan_of(backend, keep, bits)):
            found = mlp.module(x)
        if backend == "reference":
            assert torch.equal(found, expected)
        else:  # a rounding may tip where the product differs in its last bit
            step = expected.abs().max() / 7
            assert (found - expected).abs().max() <= 1.01 * step
            torch.testing.assert_close(found[1], expected[1], atol=1e-5, rtol=1e-5)

    def test_without_a_plan_it_is_the_own_forward(self, mlp):
        x = drawn((2, 1, 32), torch.float32, 5)
        expected = type(mlp.module).forward(mlp.module, x)
        assert torch.equal(mlp.module(x), expected) and torch.equal(mlp.module(x=x), expected)
        with active_forward():
            assert torch.equal(mlp.module(x), expected)

    def test_another_thread_sees_no_plan(self, mlp):
        x, seen = drawn((1, 1, 32), torch.float32, 5), []
        with torch.no_grad(), active_forward(plan_of("fast", [0.4])):
            thread = threading.Thread(target=lambda: seen.append(mlp.module(x)))
            thread.start()
            thread.join()
            assert not torch.equal(mlp.module(x), seen[0])
        torch.testing.assert_close(seen[0], type(mlp.module).forward(mlp.module, x), rtol=0, atol=0)

    def test_threads_with_plans_of_their_own(self, mlp):
        x, keeps, found = drawn((1, 1, 32), torch.float32, 5), [0.3, 0.6, 0.9], {}

        def run(keep):
            with torch.no_grad(), active_forward(plan_of("fast", [keep])):
                found[keep] = [mlp.module(x) for _ in range(50)]

        threads = [threading.Thread(target=run, args=(keep,)) for keep in keeps]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        own = type(mlp.module).forward
        for keep in keeps:
            expected = own(mlp.module, keep_top_channels(x, torch.tensor([keep])))
            assert len(found[keep]) == 50
            for output in found[keep]:
                assert_close(output, expected, torch.float32)

    def test_what_was_there_before_comes_back(self):
        module = find_mlps(tiny_base("llama"))[0]
        mlp = StepMLP(module)
        mlp.install()
        mlp.remove()
        mlp.remove()
        assert "forward" not in vars(module)
        wrapped = module.forward = lambda x: x
        mlp.install()
        with torch.no_grad(), active_forward(plan_of("fast", [0.5])):
            assert module(torch.ones(1, 1, 32)).count_nonzero() == 16  # the forward that was put there, no copy
        mlp.remove()
        assert module.forward is wrapped

    def test_many_rows_and_gradients_take_all_weights(self, mlp):
        x = drawn((9, 1, 32), torch.float32, 5)
        with active_forward(plan_of("fast", [0.5] * 9)):
            mlp.module(x)
        with active_forward(plan_of("fast", [0.5])):
            mlp.module(x[:1].clone().requires_grad_())
        assert mlp.nbytes == 0

    @pytest.mark.parametrize(("share", "copies"), [(0.5, True), (0.75, True), (0.8, False)])
    def test_auto_copies_weights_where_few_are_read(self, mlp, share, copies, monkeypatch):
        monkeypatch.setattr(input_major, "IS_MEASURED", True)
        monkeypatch.setattr(input_major, "LEAST_WEIGHTS", mlp.weights)
        x = drawn((1, 1, 32), torch.float32, 5)
        with torch.no_grad(), active_forward(plan_of("auto", [share])):
            mlp.module(x)
        assert bool(mlp.nbytes) == (copies and sparse_mlp.has_numba())

    def test_auto_leaves_small_mlps_alone(self, mlp):
        assert mlp.weights < input_major.LEAST_WEIGHTS
        with torch.no_grad(), active_forward(plan_of("auto", [0.3])):
            mlp.module(drawn((1, 1, 32), torch.float32, 5))
        assert mlp.nbytes == 0


@pytest.mark.parametrize("bits_backend", ["fake", "int8"])
@pytest.mark.parametrize("backend", ["auto", "fast"])
def test_inference_mode_and_back(backend, bits_backend):
    model = control(tiny_base("llama", torch.float32))
    settings_of = {"max_new_tokens": 3, "do_sample": False, "mlp_keep": 0.4, "bits": 8}
    backends = {"backend": backend, "bits_backend": bits_backend}
    with torch.inference_mode():
        expected = model.generate(prompts(1), **settings_of, **backends)
    assert torch.equal(model.generate(prompts(1), **settings_of, **backends), expected)


class TestCopies:
    def run(self, mlp, x):
        mlp.install()
        with torch.no_grad(), active_forward(plan_of("fast", [0.5])):
            output = mlp.module(x)
        mlp.remove()
        return output

    @pytest.mark.parametrize("change", ["in place", "through data", "another"])
    def test_a_changed_weight_is_copied_again(self, change):
        mlp, x = StepMLP(find_mlps(tiny_base("llama"))[0]), drawn((1, 1, 32), torch.float32, 5)
        before = self.run(mlp, x)
        copy = mlp._copies[InputMajorMLP]
        assert torch.equal(self.run(mlp, x), before) and mlp._copies[InputMajorMLP] is copy
        weight = mlp.module.gate_proj.weight
        with torch.no_grad():
            if change == "in place":
                weight.mul_(1.5)
            elif change == "through data":
                weight.data.mul_(1.5)
            else:
                mlp.module.gate_proj = torch.nn.Linear(32, 64, bias=False)
            expected = mlp.module(keep_top_channels(x, torch.tensor([0.5])))
        assert_close(self.run(mlp, x), expected, torch.float32)
        assert mlp._copies[InputMajorMLP] is not copy

    @pytest.mark.parametrize("shape", [(64, 32), (1536, 576), (30, 1000), (7, 1), (5,)])
    def test_samples_meet_every_channel(self, shape):
        weight = torch.arange(shape[-1]).expand(shape).reshape(-1)
        samples = weight[:: sample_stride(torch.Size(shape))]
        assert len(samples.unique()) == shape[-1] and len(samples) <= max(2 * SAMPLES, shape[-1])

    @pytest.mark.parametrize("where", [(slice(None), 5), (5,)])
    def test_one_changed_line_is_seen(self, where):
        module = find_mlps(tiny_base("llama"))[0]
        copy = InputMajorMLP.of(module)
        assert copy.still_fits(module)
        module.gate_proj.weight.data[where] *= 2
        assert not copy.still_fits(module)

    def test_a_weight_that_is_not_a_number_does_not_look_changed(self):
        module = find_mlps(tiny_base("llama"))[0]
        module.gate_proj.weight.data[0, 0] = float("nan")
        fingerprint = Fingerprint.of(module.gate_proj.weight)
        assert fingerprint == Fingerprint.of(module.gate_proj.weight)

    def test_another_activation_is_seen(self):
        mlp, x = StepMLP(find_mlps(tiny_base("llama"))[0]), drawn((1, 1, 32), torch.float32, 5)
        self.run(mlp, x)
        mlp.module.act_fn = torch.nn.ReLU()
        expected = mlp.module(keep_top_channels(x, torch.tensor([0.5])))
        assert_close(self.run(mlp, x), expected, torch.float32)

    def test_their_memory_is_stated_and_can_be_freed(self):
        model = control(tiny_base("llama", torch.float32))
        instrumentation = Instrumentation.of(model.base)
        settings_of = {"max_new_tokens": 3, "do_sample": False, "mlp_keep": 0.4}
        model.generate(prompts(1), **settings_of, backend="reference")
        assert instrumentation.copied_bytes == 0
        model.generate(prompts(1), **settings_of, backend="fast")
        assert instrumentation.copied_bytes == 2 * (2 * 32 * 64 * 4)
        instrumentation.drop_copies()
        assert instrumentation.copied_bytes == 0

    def test_nothing_is_left_on_the_base(self):
        model = control(tiny_base("llama", torch.float32))
        before = {name: set(vars(module)) for name, module in model.base.named_modules()}
        model.generate(prompts(1), max_new_tokens=3, do_sample=False, **HALF, backend="fast")
        assert {name: set(vars(module)) for name, module in model.base.named_modules()} == before


class TestWithoutNumba:
    @pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
    def test_fast_is_embedding_bag(self, without_numba, dtype, mlp):
        module = mlp.module.to(dtype)
        x = drawn((2, 1, 32), dtype, 5)
        with torch.no_grad(), active_forward(plan_of("fast", [0.4, 0.7], [16.0, 16.0])):
            found = module(x)
        expected = type(module).forward(module, keep_top_channels(x, torch.tensor([0.4, 0.7])))
        assert_close(found, expected, dtype)
        assert mlp.nbytes > 0

    def test_nothing_compiled_is_called(self, without_numba, monkeypatch):
        monkeypatch.setattr(numba_pages, "has_numba", lambda: False)
        for name in ("keep_top_channels", "fake_quantize", "multiply_kept"):
            monkeypatch.setattr(sparse_mlp, name, None)
        model = control(tiny_base("llama", torch.float32))
        settings_of = {"max_new_tokens": 3, "do_sample": False, **HALF}
        outputs = [model.generate(prompts(), **settings_of, backend=name) for name in ("reference", "fast", "auto")]
        assert all(torch.equal(output, outputs[0]) for output in outputs)


class TestInt8:
    def test_products_are_exact_in_the_rounded_numbers(self):
        weight, bias, x = (drawn(shape, torch.float32, n) for n, shape in enumerate([(20, 48), (20,), (3, 48)]))
        (w, w_scale), (numbers, scale) = quantize_rows(weight), quantize_rows(x)
        assert w.dtype == numbers.dtype == torch.int8 and numbers.abs().amax(dim=1).eq(127).all()
        expected = (numbers.double() @ w.double().t()) * scale * w_scale.t() + bias
        torch.testing.assert_close(Int8Linear(weight, bias)(x), expected.float())

    @pytest.mark.parametrize("family", FAMILIES_WITH_PARTS)
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_near_the_mlp(self, family, dtype):
        module, x = find_mlps(tiny_base(family, dtype))[0], drawn((3, 1, 32), dtype, 5)
        found, expected = Int8MLP.of(module)(x), module(x)
        assert found.dtype == dtype and found.shape == expected.shape
        assert (found - expected).abs().max() < 0.05 * expected.abs().max()
        assert not torch.equal(found, expected)

    def test_rows_of_many_bits_stay_as_they_are(self, mlp):
        x = drawn((3, 1, 32), torch.float32, 5)
        settings_of = ([0.5, 0.5, 0.5], [8.0, 12.0, 3.0])
        with torch.no_grad(), active_forward(plan_of("reference", *settings_of)):
            fake = mlp.module(x)
        with torch.no_grad(), active_forward(plan_of("reference", *settings_of, "int8")):
            found = mlp.module(x)
        assert torch.equal(found[1], fake[1])
        expected = mlp.int8_copy()(keep_top_channels(x, torch.tensor([0.5, 0.5, 0.5])))
        assert torch.equal(found[[0, 2]], expected[[0, 2]])

    def test_a_row_does_not_depend_on_the_others(self, mlp):
        x, copy = drawn((3, 1, 32), torch.float32, 5), mlp.int8_copy()
        alone = torch.cat([copy(row[None]) for row in x])
        torch.testing.assert_close(copy(x), alone, rtol=1e-6, atol=1e-6)

    def test_generation(self):
        model = control(tiny_base("llama", torch.float32))
        settings_of = {"max_new_tokens": 4, "do_sample": False, "bits": 8, "return_dict_in_generate": True}
        fake, int8 = (
            model.generate(prompts(), **settings_of, output_logits=True, bits_backend=name)
            for name in ("fake", "int8")
        )
        difference = (fake.logits[1] - int8.logits[1]).abs().max()
        assert 0 < difference < 0.1 * fake.logits[1].abs().max()
        assert Instrumentation.of(model.base).copied_bytes == 2 * (3 * 32 * 64 + 4 * (64 + 64 + 32))

    def test_refused_where_the_parts_are_not_known(self):
        model = sol_model("gpt2")
        with pytest.raises(UnsupportedAxisError, match="`bits_backend='int8'` needs MLPs.*GPT2MLP.*'fake'"):
            model.generate(prompts(), max_new_tokens=2, bits=8, bits_backend="int8")

    def test_not_refused_any_more_once_nothing_stands_in_the_way(self):
        model = control(tiny_base("llama", torch.float32))
        mlp = find_mlps(model.base)[0]
        settings_of = {"max_new_tokens": 2, "do_sample": False, "bits": 8, "bits_backend": "int8"}
        handle = mlp.gate_proj.register_forward_hook(lambda *_: None)
        with pytest.raises(UnsupportedAxisError, match="bits_backend"):
            model.generate(prompts(), **settings_of)
        handle.remove()
        model.generate(prompts(), **settings_of)

    def test_a_forward_that_was_in_the_way_is_forgotten(self):
        mlp = StepMLP(find_mlps(tiny_base("llama"))[0])
        mlp.module.forward = mlp.module.forward
        mlp.install()()
        with pytest.raises(UnsupportedAxisError):
            mlp.int8_copy()
        del mlp.module.forward
        assert mlp.int8_copy() is not None


@pytest.mark.parametrize("dtype", DTYPES)
def test_generation_by_the_fast_path_is_near_the_reference(dtype, by_modules):
    model = control(tiny_base("llama", dtype))
    schedule = constant_schedule(model, "mlp_keep", 12)
    reference, fast = (
        model.score(
            prompts(2, 24),
            context_length=14,
            controller=ScheduleController(schedule),
            return_logits=True,
            backend=name,
        ).logits
        for name in ("reference", "fast")
    )
    tolerance = (1e-4 if dtype == torch.float32 else 0.1) * reference.abs().max()
    assert (reference - fast).abs().max() <= tolerance
