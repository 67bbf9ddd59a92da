# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The axis `neuron_keep`: of every MLP's neurons the largest are read, in every layout and by every path.

The slow reference masks the input of the last projection by a loop over tokens. It knows nothing of plans.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from sol_hf import SOLConfig, SOLForCausalLM, UnsupportedAxisError
from sol_hf.cache.sol_cache import SOLCache
from sol_hf.costs.compute_costs import ComputeCosts
from sol_hf.errors import PlanNotExecutedError
from sol_hf.execution.instrumentation import Instrumentation
from sol_hf.execution.linear.step_linear import StepLinear
from sol_hf.execution.mlp.discovery import find_mlps, last_projection
from sol_hf.execution.mlp.int8 import Int8MLP
from sol_hf.execution.mlp.kept_call import keep_channels
from sol_hf.execution.mlp.kept_channels.input_major import InputMajorMLP
from sol_hf.execution.mlp.kept_neurons import neuron_major
from sol_hf.execution.mlp.kept_neurons.neuron_major import NeuronMajor
from sol_hf.execution.mlp.kept_neurons.triton import TritonDown
from sol_hf.execution.mlp.step_down import StepDown
from sol_hf.execution.mlp.step_mlp import StepMLP
from sol_hf.execution.plan import StepPlan, active_forward
from sol_hf.kernels.cpu import sparse_mlp
from sol_hf.kernels.cuda import triton_support
from sol_hf.selection.channels import keep_top_channels, kept_channels
from sol_hf.selection.rule import SelectionRule
from support.bases import FAMILIES, tiny_base
from support.cases import (
    CONTROLLERS,
    HALF,
    assert_budget_kept,
    control,
    left_padded,
    prompts,
)


DTYPES = [torch.float32, torch.bfloat16]
CLOSE = {torch.float64: 1e-6, torch.float32: 1e-5, torch.bfloat16: 0.02}
LEVELS = [0.3, 0.6, 1.0]
KEEP = torch.tensor([0.3, 0.55, 1.0])
GREEDY = {"max_new_tokens": 8, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
every_family = pytest.mark.parametrize("family", FAMILIES)
every_layout = pytest.mark.parametrize("family", [*FAMILIES, "phi", "starcoder2", "gptj"])


def model_of(family: str = "llama", dtype: torch.dtype = torch.float64) -> SOLForCausalLM:
    return control(tiny_base(family, dtype), neuron_keep=LEVELS)


def drawn(shape, dtype, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_close(found, expected, dtype):
    assert found.shape == expected.shape and found.dtype == expected.dtype
    scale = max(expected.abs().max().item(), 1e-6)
    torch.testing.assert_close(found.float(), expected.float(), atol=CLOSE[dtype] * scale, rtol=0)


def plan_of(backend, bits_backend="fake", **levels):
    cache = SOLCache(tiny_base("llama").config, SOLConfig(neuron_keep=LEVELS).action_space)
    tensors = {name: torch.as_tensor(level) for name, level in levels.items()}
    return StepPlan(cache=cache, rule=SelectionRule(), levels=tensors, backend=backend, bits_backend=bits_backend)


def naive(mlp: nn.Module, x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """The MLP whose last projection gets the `ceil(keep * neurons)` largest of its inputs, the first of equal ones."""

    def mask(module, arguments):
        kept = torch.zeros_like(arguments[0])
        for row, tokens in enumerate(arguments[0]):
            for place, token in enumerate(tokens):
                wanted = math.ceil(round(float(keep[row]) * len(token), 4))
                best = sorted(range(len(token)), key=lambda i: (-abs(float(token[i])), i))[:wanted]
                kept[row, place, best] = token[best]
        return (kept,)

    handle = last_projection(mlp).register_forward_pre_hook(mask)
    try:
        return type(mlp).forward(mlp, x)
    finally:
        handle.remove()


def install(mlp: nn.Module) -> StepMLP:
    part = StepMLP(mlp)
    part.down = StepDown(last_projection(mlp))
    part.down.install()
    part.install()
    return part


def run(part: StepMLP, x, plan):
    with torch.no_grad(), active_forward(plan):
        return part.module(x)


class TestWhatIsComputed:
    @every_layout
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_the_last_projection_gets_the_largest_neurons(self, family, dtype):
        mlp, x = find_mlps(tiny_base(family, dtype))[1], drawn((3, 2, 32), dtype, 5)
        with torch.no_grad():
            expected = naive(mlp, x, KEEP)
            own = mlp(x)
        part = install(mlp)
        found = run(part, x, plan_of("reference", neuron_keep=KEEP))
        assert torch.equal(found, expected)
        assert torch.equal(found[2], own[2]) and not torch.equal(found[0], own[0])
        for backend in ("auto", "fast"):
            assert_close(run(part, x, plan_of(backend, neuron_keep=KEEP)), expected, dtype)

    @every_layout
    def test_channels_come_first(self, family):
        mlp, x, channels = find_mlps(tiny_base(family))[0], drawn((3, 1, 32), torch.float32, 5), KEEP.flip(0)
        with torch.no_grad():
            expected = naive(mlp, keep_top_channels(x, channels), KEEP)
        part = install(mlp)
        assert torch.equal(run(part, x, plan_of("reference", neuron_keep=KEEP, mlp_keep=channels)), expected)
        for backend in ("auto", "fast"):
            assert_close(run(part, x, plan_of(backend, neuron_keep=KEEP, mlp_keep=channels)), expected, torch.float32)

    def test_both_fast_paths_are_one_after_the_other_in_bfloat16(self):
        """Neurons that are nearly equal may change places by rounding, so the choice is compared on the same ones."""
        mlp, x = find_mlps(tiny_base("llama", torch.bfloat16))[0], drawn((3, 1, 32), torch.bfloat16, 5)
        part = install(mlp)
        found = run(part, x, plan_of("fast", neuron_keep=KEEP, mlp_keep=KEEP))
        neurons = part.made_copy(InputMajorMLP).neurons(keep_channels(x, kept_channels(x, KEEP)))
        assert_close(neurons, mlp.act_fn(mlp.gate_proj(y := keep_top_channels(x, KEEP))) * mlp.up_proj(y), x.dtype)
        expected = nn.functional.linear(keep_top_channels(neurons, KEEP), mlp.down_proj.weight)
        assert_close(found, expected, x.dtype)

    def test_then_the_output_is_rounded(self):
        mlp, x = find_mlps(tiny_base("llama"))[0], drawn((3, 1, 32), torch.float32, 5)
        with torch.no_grad():
            expected = naive(mlp, x, KEEP)
        found = run(install(mlp), x, plan_of("reference", neuron_keep=KEEP, bits=[2.0, 16.0, 16.0]))
        assert torch.equal(found[1:], expected[1:]) and len(found[0].unique()) <= 3

    @pytest.mark.parametrize("bits", [[8.0, 8.0, 8.0], [8.0, 16.0, 4.0]])
    def test_rows_in_int8_choose_neurons_too(self, bits):
        mlp, x = find_mlps(tiny_base("llama"))[0], drawn((3, 1, 32), torch.float32, 5)
        with torch.no_grad():
            plain = naive(mlp, x, KEEP)
        part, plan = install(mlp), plan_of("reference", "int8", neuron_keep=KEEP, bits=bits)
        found, copy = run(part, x, plan), part.made_copy(Int8MLP)
        hidden = (mlp.act_fn(copy.gate(x[:, 0])) * copy.up(x[:, 0]))[:, None]
        in_int8 = copy.down(keep_top_channels(hidden, KEEP)[:, 0])[:, None]
        for row, number in enumerate(bits):
            torch.testing.assert_close(found[row], in_int8[row] if number <= 8 else plain[row])
        assert plan.done["neuron_keep"] == {part.down}

    @pytest.mark.parametrize("family", ["llama", "gpt2"])
    def test_gradients_flow_through_the_kept_neurons(self, family):
        part, x = install(find_mlps(tiny_base(family))[0]), drawn((3, 1, 32), torch.float32, 5).requires_grad_()
        with active_forward(plan_of("fast", neuron_keep=KEEP)):
            part.module(x).sum().backward()
        assert x.grad.abs().sum() > 0 and part.down.nbytes == 0


class TestFastPath:
    @settings(max_examples=60, deadline=None)
    @given(
        dtype=st.sampled_from(DTYPES),
        rows=st.integers(1, 5),
        neurons=st.integers(1, 70),
        outputs=st.integers(1, 40),
        keep=st.lists(st.floats(0.02, 1.0), min_size=5, max_size=5),
        transposed=st.booleans(),
        biased=st.booleans(),
        numba=st.booleans(),
        seed=st.integers(0, 10**6),
    )
    def test_equals_the_masked_product(self, dtype, rows, neurons, outputs, keep, transposed, biased, numba, seed):
        module = Conv1D(outputs, neurons) if transposed else nn.Linear(neurons, outputs, bias=biased)
        for parameter in module.requires_grad_(False).parameters():
            parameter.copy_(drawn(parameter.shape, torch.float32, seed))
        module, x, fraction = module.to(dtype), drawn((rows, 1, neurons), dtype, seed), torch.tensor(keep[:rows])
        with pytest.MonkeyPatch.context() as patch:
            if not numba:
                patch.setattr(sparse_mlp, "has_numba", lambda: False)
            found = NeuronMajor.of(module)(keep_channels(x, kept_channels(x, fraction)))
        masked = keep_top_channels(x, fraction)
        exact = module.double()(masked.double()).to(dtype)
        assert_close(found, exact, dtype)

    @pytest.mark.parametrize("threads", [1, 2, 3])
    @pytest.mark.parametrize("make", [lambda: nn.Linear(96, 3200), lambda: Conv1D(3200, 96)])
    def test_blocks_and_threads(self, make, threads):
        module, x = make().requires_grad_(False), drawn((2, 1, 96), torch.float32, 3)
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(threads)
            found = NeuronMajor.of(module)(keep_channels(x, kept_channels(x, torch.tensor([0.3, 0.6]))))
        finally:
            torch.set_num_threads(before)
        assert_close(found, module(keep_top_channels(x, torch.tensor([0.3, 0.6]))), torch.float32)

    @pytest.mark.parametrize("family", ["llama", "gpt2"])
    def test_weights_of_other_neurons_are_not_read(self, family):
        mlp, x = find_mlps(tiny_base(family))[0], drawn((1, 1, 32), torch.float32, 5)
        last, seen = last_projection(mlp), []
        last.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
        mlp(x)
        last._forward_pre_hooks.clear()
        weight = last.weight.data if family == "gpt2" else last.weight.data.t()
        weight[~kept_channels(seen[0], torch.tensor([0.4]))[0, 0]] = float("nan")
        found = run(install(mlp), x, plan_of("fast", neuron_keep=[0.4]))
        assert found.isfinite().all()

    @pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
    @pytest.mark.parametrize("levels", [{}, {"mlp_keep": KEEP.flip(0)}])
    def test_triton_equals_the_reference(self, family, levels, monkeypatch):
        """In Triton's interpreter, which runs on a CPU."""
        pytest.importorskip("triton")
        monkeypatch.setattr(triton_support, "DEVICES", ("cuda", "cpu"))
        part, x = install(find_mlps(tiny_base(family))[0]), drawn((3, 1, 32), torch.float32, 5)
        expected, found = (run(part, x, plan_of(name, neuron_keep=KEEP, **levels)) for name in ("reference", "fast"))
        assert_close(found, expected, torch.float32)
        assert {type(copy) for copy in part.down.copies} == {TritonDown}
        assert part.down.nbytes == (0 if family == "gpt2" else 4 * 32 * 64)

    @pytest.mark.parametrize(("share", "copies"), [(0.3, True), (0.95, False)])
    def test_auto_copies_weights_where_few_are_read(self, share, copies, monkeypatch):
        monkeypatch.setattr(neuron_major, "IS_MEASURED", True)
        part, x = install(find_mlps(tiny_base("llama"))[0]), drawn((1, 1, 32), torch.float32, 5)
        run(part, x, plan_of("auto", neuron_keep=[share]))
        assert part.down.nbytes == 0  # small projections are left alone
        monkeypatch.setattr(neuron_major, "LEAST_WEIGHTS", part.down.weights)
        run(part, x, plan_of("auto", neuron_keep=[share]))
        assert bool(part.down.nbytes) == (copies and sparse_mlp.has_numba())

    @pytest.mark.parametrize("change", ["through data", "another"])
    def test_a_changed_weight_is_copied_again(self, change):
        model, ids = model_of(dtype=torch.float32), prompts(1)
        options = {**GREEDY, "neuron_keep": 0.3}
        model.generate(ids, **options, backend="fast")
        mlp = model.base.model.layers[0].mlp
        if change == "through data":
            mlp.down_proj.weight.data.mul_(1.5)
        else:
            mlp.down_proj = nn.Linear(64, 32, bias=False).requires_grad_(False)
        found, expected = (model.generate(ids, **options, backend=name) for name in ("fast", "reference"))
        assert torch.equal(found.actions, expected.actions)
        assert_close(torch.stack(found.logits), torch.stack(expected.logits), torch.float32)

    def test_their_memory_is_stated_and_can_be_freed(self):
        for family, size in (("llama", 2 * 32 * 64 * 4), ("gpt2", 0)):
            model = model_of(family, torch.float32)
            instrumentation = Instrumentation.of(model.base)
            model.generate(prompts(1), **GREEDY, neuron_keep=0.5, backend="fast")
            assert instrumentation.copied_bytes == size
            instrumentation.drop_copies()
            assert instrumentation.copied_bytes == 0


class TestOnABase:
    @every_family
    def test_rows_are_as_alone_and_fast_is_as_the_reference(self, family):
        model, rows = model_of(family), [prompts(1, length)[0] for length in (20, 13)]
        options = {**GREEDY, "neuron_keep": [0.5, 0.8], "mlp_keep": 0.7, "bits": 12}
        together = model.generate(**left_padded(rows), **options, backend="reference")
        fast = model.generate(**left_padded(rows), **options, backend="fast")
        assert torch.equal(fast.actions, together.actions)
        torch.testing.assert_close(torch.stack(fast.logits), torch.stack(together.logits), rtol=1e-6, atol=1e-6)
        for row, budget in enumerate((0.5, 0.8)):
            alone = model.generate(rows[row][None], **{**options, "neuron_keep": budget}, backend="reference")
            assert torch.equal(alone.actions[0], together.actions[row])
            logits = torch.stack(together.logits)[:, row]
            torch.testing.assert_close(torch.stack(alone.logits)[:, 0], logits, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize(
        "options", [{}, {"neuron_keep": 1.0}, {"token_keep": 1.0, "bits": 16, "neuron_keep": 1.0}]
    )
    def test_dense_is_bitwise_the_base(self, dtype, options):
        model, ids = model_of(dtype=dtype), prompts()
        expected, found = model.base.generate(ids, **GREEDY), model.generate(ids, **GREEDY, **options)
        assert torch.equal(found.sequences, expected.sequences)
        assert torch.equal(torch.stack(found.logits), torch.stack(expected.logits))

    @pytest.mark.parametrize("name", CONTROLLERS)
    def test_a_hard_budget_holds_on_four_axes(self, name):
        model, budget = model_of(), {**HALF, "neuron_keep": [0.5, 0.75]}
        output = model.generate(
            prompts(), **{**GREEDY, "max_new_tokens": 18}, **budget, controller=CONTROLLERS[name](model)
        )
        assert output.realised.shape == (2, 4)
        assert_budget_kept(model, output.actions, [20, 20], **budget)

    @pytest.mark.parametrize(("level", "refreshes"), [(0.2, True), (0.7, False)])
    def test_auto_refreshes_where_few_neurons_were_kept(self, level, refreshes):
        model = control(tiny_base("llama", torch.float64), neuron_keep=[0.2, 0.7, 1.0])
        options = dict(context_length=14, neuron_keep=level, return_logits=True)
        auto, always, never = (
            model.score(prompts(1, 28), **options, kv_refresh=choice).logits for choice in ("auto", True, False)
        )
        assert not torch.equal(always, never)
        assert torch.equal(auto, always if refreshes else never)

    def test_a_policy_is_saved_and_loaded(self, tmp_path):
        model = model_of()
        model.policy.float()
        model.save_pretrained(tmp_path)
        again = SOLForCausalLM.from_pretrained(tmp_path, base=model.base)
        assert again.config.neuron_keep == LEVELS and again.action_space == model.action_space
        assert again.config.axes == ["token_keep", "mlp_keep", "bits", "neuron_keep"]
        assert again.action_space.tag(0) == "k020-s040-q03-n030"
        one, two = (m.generate(prompts(), **GREEDY, neuron_keep=0.6) for m in (model, again))
        assert torch.equal(one.sequences, two.sequences) and torch.equal(one.actions, two.actions)

    def test_a_space_without_the_axis_says_so(self):
        with pytest.raises(ValueError, match="no axis `neuron_keep`"):
            control(tiny_base("llama")).generate(prompts(), **GREEDY, neuron_keep=0.6)
        assert SOLConfig().axes is None and SOLConfig().action_space.axis_names == ("token_keep", "mlp_keep", "bits")

    def test_what_a_level_saves_is_counted(self):
        for family, shared in (("llama", 3), ("gpt2", 2)):
            model = control(tiny_base(family), neuron_keep=LEVELS)
            costs, space = ComputeCosts.of(model, 20), model.action_space
            action = space.index(1.0, 1.0, 16, 0.3)
            assert costs.dense_bytes - float(costs.bytes[action]) == pytest.approx(0.7 * 2 * 32 * 64 * 4)
            both = space.index(1.0, 0.4, 16, 0.3)
            saved = (0.6 * (shared - 1) + 0.7) * 2 * 32 * 64
            assert costs.dense_bytes - float(costs.bytes[both]) == pytest.approx(saved * 4)

    def test_large_projections_keep_their_fast_product(self):
        base = tiny_base("llama", hidden_size=128, intermediate_size=512)
        mlp = find_mlps(base)[0]
        with Instrumentation.of(base):
            down = mlp.down_proj.forward
            assert isinstance(down, StepDown) and isinstance(down.own, StepLinear) and down.is_plain_product
        assert all("forward" not in vars(module) for module in base.modules())


class NamedOtherwise(nn.Module):
    def __init__(self, mlp):
        super().__init__()
        self.inner, self.outer = mlp.up_proj, mlp.down_proj

    def forward(self, x):
        return self.outer(self.inner(x).relu())


class GateCalledLast(nn.Module):
    """Some code calls the gate `w2`, as others call the last projection."""

    def __init__(self, mlp):
        super().__init__()
        self.w1, self.w2, self.w3 = mlp.gate_proj, mlp.up_proj, mlp.down_proj

    def forward(self, x):
        return self.w3(self.w1(x).relu() * self.w2(x))


class Square(nn.Module):
    """By their sizes either projection could be the last."""

    def __init__(self, mlp):
        super().__init__()
        self.outer, self.inner = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x):
        return self.outer(self.inner(x).relu())


class TestWhereItCannotBe:
    @pytest.mark.parametrize(("kind", "last"), [(NamedOtherwise, "outer"), (GateCalledLast, "w3")])
    def test_the_last_projection_is_found_by_its_sizes(self, kind, last):
        mlp = kind(tiny_base("llama").model.layers[1].mlp)
        assert last_projection(mlp) is getattr(mlp, last)

    def test_a_layout_that_is_not_known_is_refused_before_any_compute(self):
        base, calls = tiny_base("llama"), []
        message = r"`neuron_keep` cannot .* layer 1 \(Square\) has no last projection that can be told.*outer, inner"
        base.model.layers[1].mlp = Square(base.model.layers[1].mlp)
        base.register_forward_pre_hook(lambda *_: calls.append(1))
        model = control(base, neuron_keep=LEVELS)
        with pytest.raises(UnsupportedAxisError, match=message):
            model.generate(prompts(), **GREEDY, neuron_keep=0.5)
        assert not calls and model.coverage().layers["neuron_keep"] == ()
        output = model.generate(prompts(), **GREEDY, mlp_keep=0.5)
        assert (output.realised[:, 1] < 1).all() and (output.realised[:, 3] == 1).all()

    def test_a_projection_that_is_passed_by_is_named(self):
        model = model_of()
        mlp = model.base.model.layers[1].mlp
        mlp.forward = lambda x: mlp.act_fn(mlp.gate_proj(x)) @ mlp.down_proj.weight.t()
        with pytest.raises(PlanNotExecutedError, match="`neuron_keep` in the last projection of the MLP of layer 1"):
            model.generate(prompts(), **GREEDY, neuron_keep=0.5)

    def test_hooks_of_others_see_what_the_projection_gets(self):
        model, seen = model_of(), []
        last = model.base.model.layers[0].mlp.down_proj
        last.register_forward_hook(lambda _, arguments, output: seen.append(output))
        plain = model.generate(prompts(), **GREEDY, neuron_keep=0.5, mlp_keep=0.5, backend="reference")
        number = len(seen)
        fast = model.generate(prompts(), **GREEDY, neuron_keep=0.5, mlp_keep=0.5, backend="fast")
        assert number > 0 and len(seen) == 2 * number
        assert torch.equal(fast.sequences, plain.sequences)

    def test_a_forward_of_another_library_is_called(self):
        model, calls = model_of(dtype=torch.float32), []
        last = model.base.model.layers[0].mlp.down_proj

        def forward(x):
            calls.append(int(x.count_nonzero()))
            return type(last).forward(last, x)

        last.forward = forward
        model.generate(prompts(1), **GREEDY, neuron_keep=0.3, mlp_keep=0.5, backend="fast", kv_refresh=False)
        assert calls and min(calls) == math.ceil(0.3 * 64)
