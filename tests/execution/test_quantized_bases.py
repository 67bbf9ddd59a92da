# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Bases whose weights other libraries have quantized or sharded: they run, and what needs plain weights is refused."""

from contextlib import contextmanager

import pytest
import torch
from torch import distributed, nn
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from sol_hf import FixedController, UnsupportedAxisError
from sol_hf.costs.compute_costs import ComputeCosts
from support.bases import tiny_base
from support.cases import control, prompts
from support.quantized import KINDS, quantized_and_plain


LEVELS = {"bits": [8, 16], "neuron_keep": [0.4, 1.0]}
BUDGETS = ({"token_keep": 0.6}, {"mlp_keep": 0.4}, {"neuron_keep": 0.4}, {"bits": 8})
RUN = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
WIDE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}


def by_torchao(config: str) -> PreTrainedModel:
    quantization = pytest.importorskip("torchao.quantization")
    base = tiny_base("llama", **WIDE)
    quantization.quantize_(base, getattr(quantization, config)())
    return base


def by_bitsandbytes(folder, **options) -> PreTrainedModel:
    pytest.importorskip("bitsandbytes")
    tiny_base("llama", **WIDE).save_pretrained(folder)
    config = BitsAndBytesConfig(**options)
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, device_map="cpu").eval()


def by_tensor_parallel(request) -> PreTrainedModel:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    request.addfinalizer(distributed.destroy_process_group)
    base, plan = tiny_base("llama"), {}
    for name, module in base.named_modules():
        if isinstance(module, nn.Linear) and ".mlp." in name:
            plan[name] = RowwiseParallel() if name.endswith("down_proj") else ColwiseParallel()
    return parallelize_module(base, distributed.init_device_mesh("cpu", (1,)), plan)


MAKERS = {
    "torchao int8": lambda request, folder: by_torchao("Int8WeightOnlyConfig"),
    "torchao W8A8": lambda request, folder: by_torchao("Int8DynamicActivationInt8WeightConfig"),
    "bitsandbytes int8": lambda request, folder: by_bitsandbytes(folder, load_in_8bit=True),
    "bitsandbytes 4 bits": lambda request, folder: by_bitsandbytes(folder, load_in_4bit=True),
    "tensor parallel": lambda request, folder: by_tensor_parallel(request),
}


@contextmanager
def refused_before_any_compute(base: PreTrainedModel, match: str):
    """Within the block a call is refused, and no forward of the base has run."""
    calls: list[int] = []
    hook = base.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(UnsupportedAxisError, match=match):
        yield
    hook.remove()
    assert not calls


def check_runs(base: PreTrainedModel, refused: dict[str, str] | None = None) -> None:
    """Dense calls are those of the base; budgets are kept; what needs plain weights is refused."""
    model, refused = control(base, **LEVELS), refused or {}
    assert {axis for axis, layers in model.coverage().layers.items() if not layers} == set(refused)
    expected = base.generate(prompts(1), **RUN)
    assert torch.equal(model.generate(prompts(1), **RUN), expected)
    options = {**RUN, "controller": FixedController(), "return_dict_in_generate": True, "kv_refresh": False}
    for axis, reason in refused.items():
        with refused_before_any_compute(base, reason):
            model.generate(prompts(1), **options, **{axis: 0.4})
    for budget in BUDGETS:
        if refused.keys() & budget.keys():
            continue
        output = model.generate(prompts(1), **options, **budget)
        (axis,) = budget
        assert output.realised[0, list(model.action_space.axis_names).index(axis)] <= budget[axis] + 1e-4
        if axis != "token_keep":  # products of such weights read all of them
            assert output.bytes_share.tolist() == pytest.approx([1.0], abs=1e-6), axis
    with refused_before_any_compute(base, "`bits_backend='nested'` reads plain linear layers, but `model"):
        model.generate(prompts(1), **options, bits=8, bits_backend="nested")
    with refused_before_any_compute(base, "`bits_backend='int8'` needs MLPs of .* plain linear layers"):
        model.generate(prompts(1), **options, bits=8, bits_backend="int8")
    assert torch.equal(model.generate(prompts(1), **RUN), expected)


@pytest.mark.parametrize("kind", MAKERS)
def test_a_base_of_another_library_runs_and_has_no_planes(kind, request, tmp_path):
    spread = {"neuron_keep": "`neuron_keep` cannot be controlled on .*: the neurons of the MLP of layer 0 are spread"}
    check_runs(MAKERS[kind](request, tmp_path), spread if kind == "tensor parallel" else None)


class TestLayersAsLibrariesMakeThem:
    @pytest.mark.parametrize("kind", KINDS)
    def test_they_run_and_have_no_planes(self, kind):
        check_runs(quantized_and_plain(tiny_base("llama"), kind)[0])

    @pytest.mark.parametrize("kind", KINDS)
    def test_steps_are_those_of_plain_weights_of_the_same_values(self, kind):
        models = [control(base, **LEVELS) for base in quantized_and_plain(tiny_base("llama", torch.float64), kind)]
        budget = {"token_keep": 0.6, "mlp_keep": 0.7, "neuron_keep": 0.7, "bits": 12, "controller": FixedController()}
        own, plain = (m.score(prompts(1), context_length=9, return_logits=True, **budget).logits for m in models)
        assert torch.allclose(own, plain, atol=1e-6)

    @pytest.mark.parametrize("kind", KINDS)
    def test_the_bytes_of_their_steps_are_those_that_they_store(self, kind):
        own, plain = (control(base) for base in quantized_and_plain(tiny_base("llama"), kind))
        costs, of_plain = (ComputeCosts.of(model, 20) for model in (own, plain))
        saved = sum(3 * w.numel() - 4 * len(w) for n, w in plain.base.named_parameters() if "_proj" in n)
        assert of_plain.dense_bytes - costs.dense_bytes == saved
        assert costs.dense_flops == of_plain.dense_flops

    def test_a_layer_that_does_not_say_its_sizes_is_refused(self):
        base = tiny_base("llama")
        for layer in base.model.layers:
            layer.mlp.down_proj = nn.Sequential(nn.Identity(), layer.mlp.down_proj)  # no sizes of its own
            layer.mlp.down_proj[1] = Unsized(layer.mlp.down_proj[1])
        with refused_before_any_compute(base, "`mlp_keep` and `bits` cannot be controlled on .*: no layer has an MLP"):
            control(base).generate(prompts(1), **RUN, mlp_keep=0.4)
        assert not control(base).coverage().layers["mlp_keep"]


class Unsized(nn.Module):
    """A linear layer whose sizes nobody can know."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.register_buffer("codes", linear.weight.detach().to(torch.int8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.codes.to(x.dtype).t()
