# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Bases whose weights other libraries have quantized or sharded: they run, and what needs plain weights is refused."""

import pytest
import torch
from torch import distributed, nn
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from sol_hf import FixedController, UnsupportedAxisError
from support.bases import tiny_base
from support.cases import control, prompts


BITS = {"bits": [8, 16]}
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


@pytest.mark.parametrize("kind", MAKERS)
def test_a_base_of_another_library_runs_and_has_no_planes(kind, request, tmp_path):
    base = MAKERS[kind](request, tmp_path)
    model = control(base, **BITS)
    expected = base.generate(prompts(1), **RUN)
    assert torch.equal(model.generate(prompts(1), **RUN), expected)
    options = {**RUN, "controller": FixedController(), "return_dict_in_generate": True}
    for budget in ({"token_keep": 0.6}, {"mlp_keep": 0.4}, {"bits": 8}):
        output = model.generate(prompts(1), **options, **budget)
        assert output.realised[0, list(model.action_space.axis_names).index(*budget)] <= next(iter(budget.values()))
    with pytest.raises(UnsupportedAxisError, match="`bits_backend='nested'` reads plain linear layers, but `model"):
        model.generate(prompts(1), **options, bits=8, bits_backend="nested")
    with pytest.raises(UnsupportedAxisError, match="`bits_backend='int8'` needs MLPs of .* plain linear layers"):
        model.generate(prompts(1), **options, bits=8, bits_backend="int8")
    assert torch.equal(model.generate(prompts(1), **RUN), expected)
