# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Counted bytes against the sizes of the tensors that a step of a tiny model really has."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from sol_hf.costs.compute_costs import ComputeCosts
from sol_hf.evaluation.families.tiny_configs import COMPOSITES, family_base
from sol_hf.execution.instrumentation import Instrumentation
from sol_hf.execution.linear.step_linear import StepLinear
from sol_hf.execution.mlp.discovery import find_mlps, last_projection
from sol_hf.selection.criterion import CRITERIA
from sol_hf.selection.nested_planes import PLANES
from support.bases import FAMILIES, tiny_base
from support.cases import control


CONTEXT, KEYS = 76, 76 + 3
"""Episodes of 6 steps see 77..82 keys."""


def filled_cache(model, keys: int = KEYS, **options):
    """A cache of so many tokens, with the index that a step makes."""
    ids = torch.randint(3, 90, (1, keys + 1), generator=torch.Generator().manual_seed(0))
    cache = model.new_cache()
    settings = dict(max_new_tokens=1, past_key_values=cache, do_sample=False, kv_refresh=False)
    model.generate(ids[:, :keys], **settings, **options)
    return cache


def weights_that_run(model) -> int:
    """Bytes of the parameters of all modules that a forward of one more token runs; of an embedding one row."""
    ran: set[nn.Module] = set()
    cache = model.new_cache()
    cache.set_up_rows(1, torch.device("cpu"))
    ids = torch.arange(3, 9)[None]
    with torch.no_grad():
        model.base(ids[:, :-1], past_key_values=cache, use_cache=True)
        hooks = [part.register_forward_pre_hook(lambda part, _: ran.add(part)) for part in model.base.modules()]
        model.base(ids[:, -1:], past_key_values=cache, use_cache=True)
    for hook in hooks:
        hook.remove()
    own = [(part, p) for part in ran for p in part.parameters(recurse=False)]
    return sum(p[0].nbytes if isinstance(part, nn.Embedding) else p.nbytes * chosen(model, part) for part, p in own)


def chosen(model, part) -> float:
    """Share of the experts that a token runs through, for a module with the weights of all of them."""
    experts = next((len(p) for p in part.parameters(recurse=False) if p.dim() == 3), None)
    return model.base.config.num_experts_per_tok / experts if experts else 1


def cached_bytes(model) -> int:
    """Bytes of the keys and values that a token sees, its own included."""
    cache, ids = model.new_cache(), torch.randint(3, 90, (1, KEYS), generator=torch.Generator().manual_seed(0))
    cache.set_up_rows(1, torch.device("cpu"))
    with torch.no_grad():
        model.base(ids, past_key_values=cache, use_cache=True)
    total = 0
    for layer in (layer for layer in cache.layers if layer.keys is not None):  # others share those of another layer
        seen = min(KEYS, getattr(layer, "sliding_window", None) or KEYS)
        total += sum(x[:, :, -seen:].numel() * x.element_size() for x in (layer.keys, layer.values))
    return total


def adapted_base():
    """A base in bfloat16 with an adapter in float32."""
    adapter = LoraConfig(target_modules=["q_proj", "up_proj", "down_proj"], r=4, init_lora_weights=False)
    return get_peft_model(tiny_base("llama", torch.bfloat16), adapter)


BASES = {
    **{family: lambda family=family: tiny_base(family) for family in FAMILIES},
    **{f"{name} with a tower": lambda name=name: family_base(name) for name in ("gemma3", "llava", "qwen3_vl")},
    "layers of different heads": lambda: family_base("gemma4_text"),
    "values narrower than keys, experts": lambda: family_base("deepseek_v3"),
    "experts with biases": lambda: family_base("gpt_oss"),
    "an adapter of another dtype": adapted_base,
    "tied head": lambda: tiny_base("llama", tie_word_embeddings=True),
}


@pytest.mark.parametrize("name", BASES)
def test_a_dense_step_reads_what_runs_and_what_is_cached(name):
    model = control(BASES[name]().eval())
    assert ComputeCosts.of(model, CONTEXT).dense_bytes == weights_that_run(model) + cached_bytes(model)
    assert set(COMPOSITES) >= {"llava", "qwen3_vl"}


@pytest.mark.parametrize(
    ("index_bits", "selection", "dtype"),
    [
        (2, "layer", torch.float32),
        (3, "layer", torch.bfloat16),
        (4, "group", torch.bfloat16),
        (4, "layer", torch.float32),
        (8, "group", torch.float32),
    ],
)
def test_the_index_of_sketch(index_bits, selection, dtype):
    model = control(tiny_base("llama", dtype), criterion="sketch", selection=selection, index_bits=index_bits)
    model.policy.float()
    cache = filled_cache(model, token_keep=0.6, backend="reference")
    index = kept = 0
    for layer in cache.layers:
        sketch = layer._sketch
        index += sketch.packed[:, :, :KEYS].numel() + sketch.scale[:, :, :KEYS].numel() * sketch.scale.element_size()
        index += sketch.mean.numel() * 4
        kept += sum(x[:, :, : -(-6 * KEYS // 10)].numel() * x.element_size() for x in (layer.keys, layer.values))
    costs, space = ComputeCosts.of(model, CONTEXT), model.action_space
    dense = cached_bytes(model)
    read = float(costs.bytes[space.index(0.6, 1.0, 16)])
    assert read - costs.dense_bytes == pytest.approx(index + kept - dense)


@pytest.mark.parametrize("anchor_pages", [False, True])
def test_the_index_of_pages(anchor_pages):
    model = control(tiny_base("llama"), selection="group", anchor_pages=anchor_pages)
    cache = filled_cache(model, token_keep=0.2, backend="reference")
    pages, read_pages = -(-KEYS // 4), -(-KEYS * 2 // 10 // 4)
    index = kept = 0
    for layer in cache.layers:
        upper, lower, capacity, tokens = layer._upper, layer._lower, layer._page_capacity, layer._indexed
        assert tokens == KEYS and capacity >= pages
        index += sum(bound[:, :, :pages].numel() * bound.element_size() for bound in (upper, lower))
        kept += sum(x[:, :, : 4 * read_pages].numel() * x.element_size() for x in (layer.keys, layer.values))
    costs = ComputeCosts.of(model, CONTEXT)
    read = float(costs.bytes[model.action_space.index(0.2, 1.0, 16)])
    assert read - costs.dense_bytes == pytest.approx(index + kept - cached_bytes(model))
    assert CRITERIA["quest"].keys_read(model.config.selection_rule, 0.2, KEYS) == 4 * read_pages


def planes_of(base) -> dict[nn.Module, StepLinear]:
    """The linear layers of a base whose planes were made."""
    return {part.module: part for part in Instrumentation.of(base).step_parts if isinstance(part, StepLinear)}


WIDTHS = [(4, 1, 3), (5, 2, 3), (6, 3, 3), (8, 4, 4)]


@pytest.mark.parametrize(
    ("family", "bits", "in_mlps", "elsewhere"),
    [*[("llama", *width) for width in WIDTHS], *[(family, *WIDTHS[1]) for family in FAMILIES if family != "llama"]],
)
def test_planes_and_their_scales_with_kept_channels_and_neurons(family, bits, in_mlps, elsewhere):
    """`in_mlps` and `elsewhere` are the numbers of planes that are read."""
    levels = dict(bits=[4, 5, 6, 8, 16], mlp_keep=[0.5, 1.0], neuron_keep=[0.25, 1.0])
    model = control(tiny_base(family), **levels)
    filled_cache(model, bits=8, bits_backend="nested")
    mlps, planed = find_mlps(model.base), planes_of(model.base)
    inside = {part for mlp in mlps for part in mlp.modules()}
    last = {last_projection(mlp) for mlp in mlps}
    costs, space = ComputeCosts.of(model, CONTEXT, "nested"), model.action_space
    for mlp_keep, neuron_keep in ((1.0, 1.0), (0.5, 1.0), (1.0, 0.25), (0.5, 0.25)):
        saved = 0.0
        for module, part in planed.items():
            planes = part.planes()
            assert len(planes.planes) == len(PLANES)
            read = sum(plane.nbytes for plane in planes.planes[: in_mlps if module in inside else elsewhere])
            if module in last:
                read *= neuron_keep
            elif module in inside:
                read *= mlp_keep
            saved += module.weight.nbytes - read - planes.scales.nbytes
        found = costs.dense_bytes - float(costs.bytes[space.index(1.0, mlp_keep, bits, neuron_keep)])
        assert found == pytest.approx(saved), (mlp_keep, neuron_keep)


@pytest.mark.parametrize(
    "settings", [{}, {"action_head": "factored", "budget_prior": True}, {"observe_page_fill": True}]
)
def test_the_policy_reads_what_its_step_runs(settings):
    model = control(tiny_base("llama"), **settings)
    model.policy.float()
    ran: set[nn.Module] = set()
    hooks = [part.register_forward_pre_hook(lambda part, _: ran.add(part)) for part in model.policy.modules()]
    filled_cache(model, token_keep=0.6)
    for hook in hooks:
        hook.remove()
    prior = [] if model.policy.budget_prior is None else [model.policy.budget_prior]
    own = [(part, p) for part in {*ran, *prior} for p in part.parameters(recurse=False)]
    read = sum(p[0].nbytes if isinstance(part, nn.Embedding) else p.nbytes for part, p in own)
    costs = ComputeCosts.of(model, CONTEXT)
    assert costs.policy_bytes == read and costs.policy_flops == 2 * read / 4


def test_an_adapter_is_read_beside_the_kept_channels():
    model = control(adapted_base(), neuron_keep=[0.25, 1.0])
    costs, space = ComputeCosts.of(model, CONTEXT), model.action_space
    matrix = 2 * 32 * 64 * 2  # of both layers, in bfloat16
    for action, left_out, matrices, inputs in (((0.7, 1.0), 0.3, 2, 32), ((1.0, 0.25), 0.75, 1, 64)):
        found = costs.dense_bytes - float(costs.bytes[space.index(1.0, action[0], 16, action[1])])
        adapter = 2 * 4 * inputs * 4  # of both layers, rank 4, float32; its second matrix has 4 inputs
        assert found == pytest.approx(left_out * (matrices * matrix + adapter))
