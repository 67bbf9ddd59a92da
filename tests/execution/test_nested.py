# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""`bits_backend="nested"`: steps read the weights of linear layers in fewer bits, each row in its own."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.testing._internal.two_tensor import TwoTensor
from transformers.pytorch_utils import Conv1D

from sol_hf import BudgetError, FixedController, ScheduleController, UnsupportedAxisError
from sol_hf.decoding import kv_refresh as refreshes
from sol_hf.errors import PlanNotExecutedError
from sol_hf.execution.axes import bits as bits_axis
from sol_hf.execution.instrumentation import Instrumentation
from sol_hf.execution.linear.planed_layers import LEAST_OUTSIDE_MLPS
from sol_hf.execution.linear.step_linear import StepLinear, matrix_of
from sol_hf.execution.mlp.discovery import find_mlps
from sol_hf.execution.plan import RefreshPlan, StepPlan, active_forward
from sol_hf.kernels.cpu import compilation
from sol_hf.kernels.cpu import planes as kernel
from sol_hf.selection.nested_planes import decode, encode, plane_bytes, width_read
from sol_hf.selection.refresh_gain import RefreshGain
from sol_hf.selection.rule import SelectionRule
from support.bases import FAMILIES, tiny_base
from support.cases import control, left_padded, prompts, sol_model


LEVELS = [4, 5, 6, 7, 8, 16]
NESTED = {"bits_backend": "nested", "do_sample": False, "max_new_tokens": 5, "return_dict_in_generate": True}
needs_kernel = pytest.mark.skipif(not compilation.loads("numba_planes"), reason="numba is not installed")


def schedule(model, *bits, steps=5, mlp_keep=1.0):
    """A controller that reads the same numbers of bits at every step, in each row its own."""
    ids = [model.action_space.index(1.0, mlp_keep, level) for level in bits]
    return ScheduleController(torch.tensor([ids] * steps))


def with_rounded_weights(base, bits):
    """A copy of a base whose linear layers hold what `bits` bits of their planes say."""
    changed = copy.deepcopy(base)
    for name, module in changed.named_modules():
        if type(module) in (nn.Linear, Conv1D):
            width = width_read(bits if ".mlp." in name else max(bits, LEAST_OUTSIDE_MLPS))
            read = decode(encode(matrix_of(module)), width)
            weight = read.t() if isinstance(module, Conv1D) else read
            module.weight = nn.Parameter(weight.to(module.weight.dtype).contiguous(), requires_grad=False)
    return changed


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("bits", [8, 5])
def test_a_step_is_that_of_a_base_with_rounded_weights(family, bits):
    base = tiny_base(family, torch.float64, tie_word_embeddings=family != "phi3")
    model, ids = control(base, bits=LEVELS), prompts(1)
    settings = {**NESTED, "max_new_tokens": 1, "output_logits": True, "backend": "reference"}
    found = model.generate(ids, **settings, controller=schedule(model, bits)).logits[0]
    with torch.no_grad():
        cache = base(ids[:, :-1], use_cache=True).past_key_values
        expected = with_rounded_weights(base, bits)(ids[:, -1:], past_key_values=cache).logits[:, -1]
    torch.testing.assert_close(found, expected.float(), atol=1e-6, rtol=1e-6)


@needs_kernel
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fast_path_is_near_the_reference(family, dtype):
    model = control(tiny_base(family, dtype), bits=LEVELS)
    controller = schedule(model, 4, 7, 16)
    settings = {**NESTED, "max_new_tokens": 2, "output_logits": True, "controller": controller}
    reference, fast = (
        model.generate(prompts(3), **settings, backend=name).logits[0].float() for name in ("reference", "fast")
    )
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 0.05}[dtype]
    torch.testing.assert_close(fast, reference, atol=tolerance * float(reference.abs().max()), rtol=0)


@needs_kernel
def test_compiled_code_multiplies_whatever_the_backend_but_the_reference(monkeypatch, by_modules):
    seen = []
    multiply = kernel.multiply
    monkeypatch.setattr(kernel, "multiply", lambda *call: seen.append(call) or multiply(*call))
    model = control(tiny_base("llama"), bits=LEVELS)
    for backend, wanted in (("reference", 0), ("auto", 15), ("fast", 15)):
        seen.clear()
        settings = {**NESTED, "max_new_tokens": 1, "backend": backend}
        model.generate(prompts(1), **settings, controller=schedule(model, 6))
        assert len(seen) == wanted, backend  # 7 linear layers in each of 2 layers, and the LM head


@pytest.mark.parametrize("backend", ["reference", "fast"])
def test_a_row_gives_the_same_alone_and_next_to_rows_with_other_bits(backend):
    model = control(tiny_base("llama", torch.float64 if backend == "reference" else torch.float32), bits=LEVELS)
    rows, bits = [prompts(1, n, seed=n)[0] for n in (20, 12, 17, 20)], (5, 16, 8, 5)
    settings = {**NESTED, "output_logits": True, "backend": backend}
    controllers = schedule(model, *bits), [schedule(model, level) for level in bits]
    together = model.generate(**left_padded(rows), **settings, controller=controllers[0])
    for place, (row, controller) in enumerate(zip(rows, controllers[1], strict=True)):
        alone = model.generate(row[None], **settings, controller=controller)
        assert torch.equal(together.sequences[place, -5:], alone.sequences[0, -5:])
        logits = torch.stack(together.logits)[:, place], torch.stack(alone.logits)[:, 0]
        torch.testing.assert_close(*logits, atol=1e-4, rtol=1e-4)


def test_rows_above_8_bits_are_dense_to_the_bit():
    model = control(tiny_base("llama", torch.float32), bits=[8, 9, 12, 16])
    settings = {**NESTED, "output_logits": True, "backend": "reference"}
    dense = model.generate(prompts(2), **{**settings, "bits_backend": "fake"}, controller=schedule(model, 16))
    for level in (9, 12, 16):
        found = model.generate(prompts(2), **settings, controller=schedule(model, level))
        assert torch.equal(torch.stack(found.logits), torch.stack(dense.logits))
        assert found.realised[:, 2].tolist() == [16.0, 16.0]


@pytest.mark.parametrize("level, read", [(2, 4), (3, 4), (5, 5), (7, 8), (9, 16), (15, 16)])
def test_realised_says_what_was_read(level, read):
    model = control(tiny_base("llama"), bits=[level, 16])
    controller = schedule(model, level, steps=8)
    output = model.generate(prompts(1), **NESTED, controller=controller)
    assert output.realised[0, 2] == read
    score = model.score(prompts(1), context_length=12, bits_backend="nested", controller=controller)
    assert score.realised[0, 2] == read
    fake = model.generate(prompts(1), **{**NESTED, "bits_backend": "fake"}, controller=controller)
    assert fake.realised[0, 2] == level


@pytest.mark.parametrize("controller", [None, FixedController()])
def test_a_hard_budget_holds_for_what_is_read(controller):
    model = control(tiny_base("llama"), bits=[4, 7, 9, 16])
    settings = {**NESTED, "max_new_tokens": 18, "budget_horizon": "episode"}
    for target in (4, 5.5, 7, 8, 10, 15.9):
        output = model.generate(prompts(2), **settings, bits=target, controller=controller)
        assert (output.realised[:, 2] <= target + 1e-4).all(), target  # three whole episodes of six steps


def test_a_budget_below_what_can_be_read_is_refused():
    model = control(tiny_base("llama"), bits=[2, 16])
    with pytest.raises(BudgetError, match=r"`bits`=3 is below what the smallest level .*\(2\) is carried out with, 4"):
        model.generate(prompts(1), **NESTED, bits=3)
    model.generate(prompts(1), **{**NESTED, "bits_backend": "fake"}, bits=3)


def test_a_cache_goes_on_under_another_backend_and_is_rolled_back_with_what_was_spent():
    model = control(tiny_base("llama"), bits=[7, 16], episode_length=20)
    first = model.generate(prompts(1), **NESTED, controller=schedule(model, 7))
    cache = pickle.loads(pickle.dumps(first.past_key_values))
    assert cache.ledger.episode_sums[0, 2] == 5 * 8 / 16
    cache.crop(-2)
    assert cache.ledger.episode_sums[0, 2] == 3 * 8 / 16
    text = first.sequences[:, :-2]
    fake = {**NESTED, "bits_backend": "fake", "max_new_tokens": 1, "budget_horizon": "episode"}
    model.generate(text, **fake, bits=7, past_key_values=cache)
    assert cache.ledger.total_means()[0, 2] == 7 / 16


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2"])
def test_channels_and_neurons_are_kept_and_weights_are_read_in_fewer_bits(family):
    settings = {"bits": LEVELS, "neuron_keep": [0.4, 0.6, 1.0]}
    model, x = control(tiny_base(family), **settings), torch.randn(2, 1, 32)
    rounded = control(with_rounded_weights(model.base, 5), **settings)
    levels = {"mlp_keep": torch.tensor([0.5, 0.3]), "neuron_keep": torch.tensor([0.4, 0.6])}
    for kept in ({}, {"mlp_keep"}, {"neuron_keep"}, {"mlp_keep", "neuron_keep"}):
        chosen = {name: levels[name] for name in kept}
        plan = StepPlan(model.new_cache(), SelectionRule(), chosen, "reference")
        with torch.no_grad(), Instrumentation.of(rounded.base), active_forward(plan):
            expected = find_mlps(rounded.base)[0](x)
        for backend in ("reference", "fast"):
            chosen["bits"] = torch.tensor([5.0, 5.0])
            plan = StepPlan(model.new_cache(), SelectionRule(), chosen, backend, "nested")
            with torch.no_grad(), Instrumentation.of(model.base), active_forward(plan):
                found = find_mlps(model.base)[0](x)
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def keys_of(base, tokens, cache=None) -> torch.Tensor:
    """The keys `(rows, kv_heads, tokens, head_dim)` of the last layer after a forward of a base."""
    with torch.no_grad():
        return base(tokens, past_key_values=cache, use_cache=True).past_key_values.layers[-1].keys


def refreshed_keys(base, tokens, prompt, bits):
    """Keys of the last layer if a prompt is read densely, and further tokens in planes of some bits."""
    with torch.no_grad():
        cache = base(tokens[:, :prompt], use_cache=True).past_key_values
    return keys_of(with_rounded_weights(base, bits), tokens[:, prompt:], cache)


def test_a_prompt_reads_the_original_weights_and_a_refresh_all_bits_of_the_planes():
    base = tiny_base("llama", torch.float64)
    model = control(base, bits=LEVELS, episode_length=4)
    settings = {**NESTED, "max_new_tokens": 6, "backend": "reference"}
    output = model.generate(prompts(1), **settings, controller=schedule(model, 4, steps=6))
    prompt, done = prompts(1).shape[1] - 1, prompts(1).shape[1] + 3
    keys, tokens = output.past_key_values.layers[-1].keys, output.sequences[:, :done]
    torch.testing.assert_close(keys[:, :, :prompt], keys_of(base, tokens)[:, :, :prompt])
    torch.testing.assert_close(keys[:, :, :done], refreshed_keys(base, tokens, prompt, 8), atol=1e-6, rtol=1e-6)
    assert not torch.allclose(keys[:, :, done - 1], keys_of(base, tokens)[:, :, -1], atol=1e-5)


def test_a_refresh_of_steps_above_8_bits_reads_the_original_weights():
    base = tiny_base("llama", torch.float64)
    model, ids = control(base, bits=LEVELS, episode_length=4), prompts(1)
    space = model.action_space
    actions = torch.tensor([[space.index(0.2, 1.0, 16)]] * 4 + [[space.index(1.0, 1.0, 8)]] * 2)
    settings = {**NESTED, "max_new_tokens": 6, "backend": "reference", "controller": ScheduleController(actions)}
    output = model.generate(ids, **settings)
    done = ids.shape[1] + 3
    keys = output.past_key_values.layers[-1].keys[:, :, :done]
    torch.testing.assert_close(keys, keys_of(base, output.sequences[:, :done]), atol=1e-9, rtol=0)


def test_a_new_turn_within_an_episode_reads_the_original_weights(monkeypatch):
    monkeypatch.setitem(bits_axis.GAINS, "nested", RefreshGain(((4.0, 1.0), (8.0, 0.0), (16.0, 0.0))))
    base = tiny_base("llama", torch.float64)
    model = control(base, bits=LEVELS, episode_length=4)
    settings = {**NESTED, "max_new_tokens": 2, "backend": "reference", "controller": schedule(model, 4, 8)}
    for kv_refresh in (True, "auto"):
        cache = model.new_cache()
        first = model.generate(prompts(2), **settings, kv_refresh=kv_refresh, past_key_values=cache)
        text = torch.cat([first.sequences, prompts(2, 5, seed=4)], dim=1)
        model.generate(text, **settings, kv_refresh=kv_refresh, past_key_values=cache)
        dense = keys_of(base, text[:, :-1])[:1]  # the second row, all in 8 bits, is left as it is
        torch.testing.assert_close(cache.layers[-1].keys[:1, :, : dense.shape[2]], dense, atol=1e-9, rtol=0)


@pytest.mark.parametrize("kv_refresh", [True, "auto"])
def test_the_refresh_of_a_row_is_the_same_alone_and_next_to_others(kv_refresh, monkeypatch):
    monkeypatch.setitem(bits_axis.GAINS, "nested", RefreshGain(((4.0, 1.0), (8.0, 0.0), (16.0, 0.0))))
    model = control(tiny_base("llama", torch.float64), bits=LEVELS, episode_length=4)
    lines = ([16, 16, 4, 16], [4] * 4, [16] * 4, [8] * 4, [16, 8, 8, 16], [16, 8, 5, 5])
    ids = [[model.action_space.index(1.0, 1.0, bits) for bits in (*line, 16, 16)] for line in lines]
    rows, settings = prompts(len(lines)), {**NESTED, "max_new_tokens": 6, "kv_refresh": kv_refresh}
    settings |= {"output_logits": True, "backend": "reference"}
    together = model.generate(rows, **settings, controller=ScheduleController(torch.tensor(ids).T))
    for place, line in enumerate(ids):
        controller = ScheduleController(torch.tensor([line]).T)
        alone = model.generate(rows[place : place + 1], **settings, controller=controller)
        logits = torch.stack(together.logits)[:, place], torch.stack(alone.logits)[:, 0]
        torch.testing.assert_close(*logits, atol=1e-6, rtol=0)


def test_steps_that_lose_only_what_a_refresh_would_lose_need_none(monkeypatch):
    model, lengths = control(tiny_base("llama"), bits=LEVELS, episode_length=4), []
    forward = refreshes.dense_forward
    monkeypatch.setattr(
        refreshes, "dense_forward", lambda *call, **plan: lengths.append(call[1].length) or forward(*call, **plan)
    )
    for levels, wanted in (([7, 16, 8, 8], []), ([16, 8, 6, 8], [4])):
        actions = [[model.action_space.index(1.0, 1.0, bits)] for bits in (*levels, 16)]
        lengths.clear()
        model.generate(prompts(1), **NESTED, controller=ScheduleController(torch.tensor(actions)))
        assert lengths == wanted, levels
    actions = [[model.action_space.index(0.2, 1.0, 8)]] * 5
    model.generate(prompts(1), **NESTED, controller=ScheduleController(torch.tensor(actions)))
    assert lengths == [4, 4]


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_a_score_gives_what_a_generation_with_refreshes_gave(backend, monkeypatch):
    monkeypatch.setitem(bits_axis.GAINS, "nested", RefreshGain(((4.0, 1.0), (8.0, 0.0), (16.0, 0.0))))
    model, ids = control(tiny_base("llama", torch.float32), bits=LEVELS, episode_length=4), prompts(2)
    levels = [[(0.2, 5), (1.0, 8)], [(1.0, 16), (0.2, 16)], [(1.0, 8), (0.6, 5)]] * 4
    actions = [[model.action_space.index(keep, 1.0, bits) for keep, bits in step] for step in levels]
    options = {"bits_backend": "nested", "backend": backend, "controller": ScheduleController(torch.tensor(actions))}
    for kv_refresh in (True, "auto"):
        options["kv_refresh"] = kv_refresh
        output = model.generate(ids, **{**NESTED, "max_new_tokens": 12, "output_logits": True, **options})
        score = model.score(output.sequences, context_length=ids.shape[1] - 1, return_logits=True, **options)
        torch.testing.assert_close(score.logits, torch.stack(output.logits, dim=1), atol=1e-4, rtol=0)
        assert torch.equal(score.actions, output.actions)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_refreshed_from_planes(family):
    base = tiny_base(family, torch.float32, tie_word_embeddings=family != "phi3")
    model = control(base, bits=LEVELS, episode_length=3)
    settings = {**NESTED, "max_new_tokens": 8, "output_logits": True, "controller": schedule(model, 5, 16, 8, steps=8)}
    reference, fast = (model.generate(prompts(3), **settings, backend=name) for name in ("reference", "auto"))
    assert torch.equal(reference.sequences, fast.sequences)
    torch.testing.assert_close(torch.stack(fast.logits), torch.stack(reference.logits), atol=1e-3, rtol=1e-3)


def test_a_refresh_that_does_not_read_its_planes_raises(monkeypatch):
    model = control(tiny_base("llama"), bits=LEVELS, episode_length=4)
    monkeypatch.setattr(RefreshPlan, "reads_planes", False)
    with pytest.raises(PlanNotExecutedError, match="bits"):
        model.generate(prompts(1), **NESTED, controller=schedule(model, 5))


def test_memory_is_stated_and_freed_and_bounded():
    model = control(tiny_base("llama"), bits=LEVELS)
    linears = [module for module in model.base.modules() if type(module) is nn.Linear]
    needed = sum(plane_bytes(*module.weight.shape) for module in linears)
    assert "copies" not in str(model.coverage())
    with pytest.raises(ValueError, match=f"would take {needed:,} bytes, but `max_plane_bytes` is {needed - 1:,}"):
        model.generate(prompts(1), **NESTED, bits=6, max_plane_bytes=needed - 1)
    assert Instrumentation.of(model.base).copied_bytes == 0
    before = model.generate(prompts(1), **NESTED, bits=6, max_plane_bytes=needed)
    assert f"copies of weights: {needed:,} bytes" in str(model.coverage())
    model.drop_copies()
    assert Instrumentation.of(model.base).copied_bytes == 0
    again = model.generate(prompts(1), **NESTED, bits=6)
    assert torch.equal(before.sequences, again.sequences)


@pytest.mark.parametrize("most", [-1, 1.5, True, "1GB"])
def test_a_bound_that_is_no_number_of_bytes_is_refused(most):
    with pytest.raises(ValueError, match="`max_plane_bytes` must be a number of bytes"):
        sol_model().generate(prompts(1), **NESTED, bits=6, max_plane_bytes=most)


@pytest.mark.parametrize("change", ["in place", "data", "replaced"])
def test_weights_that_change_are_read_anew(change):
    model = control(tiny_base("llama"), bits=LEVELS)
    settings = {**NESTED, "max_new_tokens": 1, "output_logits": True}
    model.generate(prompts(1), **settings, controller=schedule(model, 6))
    layer = model.base.model.layers[1].mlp.down_proj
    if change == "in place":
        layer.weight.mul_(2)
    elif change == "data":
        layer.weight.data.mul_(2)
    else:
        layer.weight = nn.Parameter(layer.weight * 2, requires_grad=False)
    found = model.generate(prompts(1), **settings, controller=schedule(model, 6)).logits[0]
    fresh = control(copy.deepcopy(model.base), bits=LEVELS)
    expected = fresh.generate(prompts(1), **settings, controller=schedule(fresh, 6)).logits[0]
    assert torch.equal(found, expected)


class Quantized(nn.Module):
    """As layers of GPTQ: integers in place of a weight."""

    def __init__(self, linear):
        super().__init__()
        self.register_buffer("qweight", linear.weight.mul(100).int())

    def forward(self, x):
        return functional.linear(x, self.qweight.float() / 100)


class OtherLinear(nn.Linear):
    """As layers of bitsandbytes: a subclass."""


def other_kinds(kind, layer):
    if kind == "meta":
        layer.weight = nn.Parameter(layer.weight.to("meta"), requires_grad=False)
    elif kind == "tensor class":
        layer.weight = nn.Parameter(TwoTensor(layer.weight.detach(), layer.weight.detach()), requires_grad=False)
    elif kind == "integers":
        layer.weight = nn.Parameter(layer.weight.detach().mul(100).to(torch.int8), requires_grad=False)
    elif kind == "forward":
        layer.forward = layer.forward
    elif kind == "class":
        layer.__class__ = OtherLinear
    elif kind == "not finite":
        layer.weight.data[3, 5] = float("nan")


@pytest.mark.parametrize(
    "kind, message",
    [
        ("meta", "a weight without values, on the meta device"),
        ("tensor class", "a weight of the class TwoTensor"),
        ("integers", "a weight of torch.int8"),
        ("forward", "a forward that another library has replaced"),
        ("class", "is of the class OtherLinear"),
        ("module", "is of the class Quantized"),
        ("not finite", "not finite"),
    ],
)
def test_weights_of_another_kind_are_refused_before_any_compute(kind, message, monkeypatch):
    base = tiny_base("llama")
    model = control(base, bits=LEVELS)
    attention = base.model.layers[1].self_attn
    if kind == "module":
        attention.o_proj = Quantized(attention.o_proj)
    else:
        other_kinds(kind, attention.o_proj)
    monkeypatch.setattr(nn.Embedding, "forward", None)  # what every forward begins with
    error = ValueError if kind == "not finite" else UnsupportedAxisError
    with pytest.raises(error, match=f"model.layers.1.self_attn.o_proj.*{message}.*bits_backend='fake'"):
        model.generate(prompts(1), **NESTED, bits=6)


def test_a_layer_that_is_not_called_is_an_error():
    model = control(tiny_base("llama"), bits=LEVELS)
    layer = model.base.model.layers[0].self_attn
    own = layer.o_proj

    class Unseen(nn.Module):
        """Multiplies with the weight of a layer that it does not call."""

        def __init__(self):
            super().__init__()
            self.hidden = own

        def forward(self, x):
            return functional.linear(x, self.hidden.weight)

    layer.o_proj = Unseen()
    with pytest.raises(PlanNotExecutedError, match="self_attn.o_proj.hidden"):
        model.generate(prompts(1), **NESTED, bits=6)


def test_nothing_is_left_on_the_base():
    model = control(tiny_base("gpt2"), bits=LEVELS)
    model.generate(prompts(1), **NESTED, bits=6)
    assert not any("forward" in vars(module) for module in model.base.modules())


def test_a_generation_in_8_bits_is_near_the_dense_one():
    model = control(tiny_base("llama", torch.float64), bits=LEVELS)
    settings = {**NESTED, "output_logits": True}
    dense = model.base.generate(prompts(2), **{k: v for k, v in settings.items() if k != "bits_backend"}).logits[0]
    errors = []
    for level in (8, 6, 5, 4):
        found = model.generate(prompts(2), **settings, controller=schedule(model, level)).logits[0]
        errors.append(float((found - dense).abs().mean() / dense.abs().mean()))
    assert errors == sorted(errors) and 0 < errors[0] < 0.05 < errors[-1]


def test_planes_are_shared_by_wrappers_of_a_base():
    base = tiny_base("llama")
    for _ in range(2):
        model = control(base, bits=LEVELS)
        model.generate(prompts(1), **NESTED, bits=6)
    part = StepLinear.of(base.lm_head)
    assert part.nbytes == plane_bytes(99, 32) and part.planes() is part.planes()
