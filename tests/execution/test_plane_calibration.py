# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""`model.calibrate_planes`: planes lose less on texts like the one that they fit, and nothing else is changed."""

import gc

import pytest
import torch
from torch import nn

from sol_hf import ScheduleController, UnsupportedAxisError
from sol_hf.selection.nested_planes import decode, encode
from support.bases import tiny_base
from support.cases import control, prompts


LEVELS = [4, 5, 6, 8, 16]


def weights_and_inputs():
    """Weights with an outlier in some groups, and inputs of very different sizes."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(40, 150, generator=generator)
    weight[::3, 7] *= 6
    return weight, torch.randn(500, 150, generator=generator) * torch.linspace(0.01, 3, 150)


@pytest.mark.parametrize("bits, share", [(5, 0.97), (6, 0.97), (8, 1.0)])
def test_outputs_differ_less(bits, share):
    weight, inputs = weights_and_inputs()
    fitted, plain = encode(weight, inputs.square().mean(dim=0)), encode(weight)
    errors = [((decode(planes, bits) - weight) @ inputs.T).square().mean() for planes in (fitted, plain)]
    assert errors[0] < share * errors[1]
    assert fitted.nbytes == plain.nbytes


def test_planes_without_a_text_are_as_before():
    weight, _ = weights_and_inputs()
    largest = weight.abs().max(dim=1).values
    assert ((decode(encode(weight), 8) - weight).abs().amax(dim=1) <= 1.02 * largest / 256).all()


def logits(model, bits: int) -> torch.Tensor:
    schedule = ScheduleController(torch.full((3, 1), model.action_space.index(1.0, 1.0, bits)))
    options = dict(bits_backend="nested", max_new_tokens=1, do_sample=False, output_logits=True)
    return model.generate(prompts(1), **options, return_dict_in_generate=True, controller=schedule).logits[0]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
def test_a_calibrated_base_reads_other_planes_and_is_itself_unchanged(family):
    model = control(tiny_base(family), token_keep=[1.0], mlp_keep=[1.0], bits=LEVELS)
    dense, before = model.base(prompts(1)).logits, logits(model, 6)
    state = {name: tensor.clone() for name, tensor in model.base.state_dict().items()}
    model.calibrate_planes(prompts(3, 30, seed=5))
    assert not torch.equal(logits(model, 6), before)
    assert not any(module._forward_pre_hooks for module in model.base.modules())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.base.state_dict().items())
    assert torch.equal(model.base(prompts(1)).logits, dense)
    again = logits(model, 6)
    model.drop_copies()
    assert torch.equal(logits(model, 6), again), "the scales outlive the planes"


def test_a_base_in_training_mode_is_calibrated_without_dropout_and_stays_in_it():
    model = control(tiny_base("gpt2", resid_pdrop=0.5), token_keep=[1.0], mlp_keep=[1.0], bits=LEVELS)
    model.calibrate_planes(prompts(2, 20))
    expected = logits(model, 6)
    model.base.train()
    model.calibrate_planes(prompts(2, 20))
    assert model.base.training
    model.base.eval()
    assert torch.equal(logits(model, 6), expected)


def test_a_text_that_is_given_before_the_first_call_counts():
    first, second = (control(tiny_base("llama"), token_keep=[1.0], mlp_keep=[1.0], bits=LEVELS) for _ in range(2))
    logits(first, 6)
    for model in (first, second):
        model.calibrate_planes(prompts(3, 30, seed=5))
        gc.collect()
    assert torch.equal(logits(first, 6), logits(second, 6))


def test_an_interrupted_calibration_leaves_nothing(monkeypatch):
    model = control(tiny_base("llama"), bits=LEVELS)
    monkeypatch.setattr(model.base.model.layers[1].mlp, "forward", None)
    with pytest.raises(TypeError):
        model.calibrate_planes(prompts(1))
    assert not any(module._forward_pre_hooks for module in model.base.modules())


@pytest.mark.parametrize("wrong", [torch.ones(3, dtype=torch.long), torch.ones(1, 3), "text", torch.ones(1, 0).long()])
def test_other_input_is_refused(wrong):
    with pytest.raises(ValueError, match=r"`input_ids` must be token ids \(rows, length\)"):
        control(tiny_base("llama"), bits=LEVELS).calibrate_planes(wrong)


def test_weights_of_another_kind_are_refused_before_any_compute(monkeypatch):
    model = control(tiny_base("llama"), bits=LEVELS)
    layer = model.base.model.layers[0].self_attn.q_proj
    layer.weight = nn.Parameter(layer.weight.detach().mul(100).to(torch.int8), requires_grad=False)
    monkeypatch.setattr(nn.Embedding, "forward", None)
    with pytest.raises(UnsupportedAxisError, match="`model.layers.0.self_attn.q_proj` has a weight of torch.int8"):
        model.calibrate_planes(prompts(1))
