# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The base is frozen: no gradients, no dropout, and none of its weights in a saved policy."""

import copy

import pytest
import torch
from safetensors.torch import load_file

from sol_hf import SOLForCausalLM
from support.bases import tiny_base
from support.cases import HALF, control, prompts
from support.policy_folders import load


PROMPT = prompts(rows=2, length=16)


@pytest.fixture
def model() -> SOLForCausalLM:
    model = control(tiny_base("llama"))
    model.policy.float()
    return model


class TestGradients:
    def test_no_parameter_of_the_base_requires_any(self, model):
        assert not any(parameter.requires_grad for parameter in model.base.parameters())
        assert all(parameter.requires_grad for parameter in model.policy.parameters())
        assert model.num_parameters(only_trainable=True) == model.policy.num_parameters()

    def test_a_loss_of_the_base_fills_none(self, model):
        loss = model(PROMPT, labels=PROMPT).loss
        assert not loss.requires_grad
        with pytest.raises(RuntimeError, match="does not require grad"):
            loss.backward()
        assert all(parameter.grad is None for parameter in model.parameters())

    def test_gradients_of_inputs_pass_through(self, model):
        embeddings = model.get_input_embeddings()(PROMPT).requires_grad_()
        model(inputs_embeds=embeddings, labels=PROMPT).loss.backward()
        assert embeddings.grad is not None and embeddings.grad.abs().sum() > 0
        assert all(parameter.grad is None for parameter in model.base.parameters())

    def test_a_loaded_base_is_frozen_too(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        assert not any(parameter.requires_grad for parameter in load(tmp_path).base.parameters())


class TestModes:
    def test_training_mode_is_for_the_policy(self):
        model = control(tiny_base("llama", attention_dropout=0.5))
        wanted = model(PROMPT).logits
        assert model.train() is model and model.training and model.policy.training and not model.base.training
        assert torch.equal(model(PROMPT).logits, wanted)
        assert model.eval() is model and not any(module.training for module in model.modules())

    def test_evaluation_mode_reaches_a_base_that_was_trained_elsewhere(self):
        base = tiny_base("llama").train()
        assert not control(base).eval().base.training

    def test_copies_and_casts_take_both_along(self, model):
        twin = copy.deepcopy(model)
        assert torch.equal(
            twin.generate(PROMPT, max_new_tokens=4, **HALF), model.generate(PROMPT, max_new_tokens=4, **HALF)
        )
        assert twin.base is not model.base and twin.policy is not model.policy
        half = twin.to(torch.bfloat16)
        assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert half.generate(PROMPT, max_new_tokens=4, **HALF).shape == (2, 20)


class TestSaving:
    def same(self, folder, policy) -> bool:
        saved, own = load_file(folder / "model.safetensors"), policy.state_dict()
        return saved.keys() == own.keys() and all(torch.equal(saved[name], own[name]) for name in own)

    def test_the_state_dict_of_the_whole_model(self, model, tmp_path):
        states = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        wanted = copy.deepcopy(model.policy)
        with torch.no_grad():
            model.policy.action_head.bias.add_(1)
        model.save_pretrained(tmp_path, state_dict=states)
        assert self.same(tmp_path, wanted) and not self.same(tmp_path, model.policy)

    def test_the_state_dict_of_the_policy(self, model, tmp_path):
        model.save_pretrained(tmp_path, state_dict=model.policy.state_dict())
        assert self.same(tmp_path, model.policy)

    @pytest.mark.parametrize("part", ["base", "half"])
    def test_a_state_dict_without_the_policy_is_refused(self, model, tmp_path, part):
        states = model.base.state_dict() if part == "base" else dict(list(model.policy.state_dict().items())[:3])
        with pytest.raises(ValueError, match="`state_dict` must hold the weights of the policy"):
            model.save_pretrained(tmp_path, state_dict=states)

    def test_other_processes_write_nothing(self, model, tmp_path):
        model.save_pretrained(tmp_path, state_dict=model.state_dict(), is_main_process=False)
        assert list(tmp_path.iterdir()) == []
