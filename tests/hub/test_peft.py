# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""PEFT: an adapter on a released policy, and a base with an adapter."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from safetensors.torch import load_file

from sol_hf import SOLConfig, SOLForCausalLM, SOLPolicyModel
from sol_hf.hub.saving import save_policy
from support.adapters import LORA, PADDED, PROMPT, continuation
from support.bases import tiny_base
from support.cases import HALF, SETTINGS, control
from support.policy_folders import files_with
from support.trainers import changed, losses, trainer_of, weights


@pytest.fixture
def released(tmp_path) -> Path:
    """Folder of a policy."""
    model = control(tiny_base("llama"))
    model.policy.float()
    model.save_pretrained(tmp_path / "released")
    return tmp_path / "released"


def load(folder: Path) -> SOLForCausalLM:
    return SOLForCausalLM.from_pretrained(folder, base=tiny_base("llama"))


def adapt(released: Path, folder: Path, **arguments) -> SOLForCausalLM:
    """Train an adapter on the released policy and save it in `folder`."""
    settings = dict(learning_rate=1e-2, peft_config=LORA, save_strategy="no") | arguments
    trainer = trainer_of(folder, load(released), **settings)
    trainer.train()
    trainer.save_model()
    return trainer.sol


class TestAdapterOnAPolicy:
    def test_only_the_adapter_is_trained(self, released, tmp_path):
        before = weights(load(released).policy)
        trained = adapt(released, tmp_path / "adapter").policy
        inner = trained.get_base_model()
        names = {name.replace(".base_layer", ""): weight for name, weight in inner.state_dict().items()}
        assert all(torch.equal(names[name], weight) for name, weight in before.items())
        assert all(weight.abs().max() > 0 for name, weight in trained.state_dict().items() if "lora_B" in name)
        files = {path.name for path in (tmp_path / "adapter").iterdir() if path.is_file()}
        assert {"adapter_model.safetensors", "adapter_config.json"} <= files
        beneath = load_file(tmp_path / "adapter" / "model.safetensors")  # the policy, which no repository holds
        assert beneath.keys() == before.keys()
        assert all(torch.equal(beneath[name], weight) for name, weight in before.items())

    def test_it_is_loaded_on_the_released_policy(self, released, tmp_path):
        trained = adapt(released, tmp_path / "adapter")
        model = load(released)
        plain = continuation(model)
        model.policy = PeftModel.from_pretrained(model.policy, tmp_path / "adapter").eval()
        assert torch.equal(continuation(model), continuation(trained))
        with model.policy.disable_adapter():
            assert torch.equal(continuation(model), plain)

    def test_its_folder_loads_by_itself(self, released, tmp_path):
        trained = adapt(released, tmp_path / "adapter")
        assert torch.equal(continuation(load(tmp_path / "adapter")), continuation(trained))

    def test_it_can_be_merged_and_released(self, released, tmp_path):
        trained = adapt(released, tmp_path / "adapter")
        wanted = continuation(trained)
        trained.policy = trained.policy.merge_and_unload()
        trained.save_pretrained(tmp_path / "merged")
        assert isinstance(load(tmp_path / "merged").policy, SOLPolicyModel)
        assert torch.equal(continuation(load(tmp_path / "merged")), wanted)

    def test_a_model_with_an_adapter_saves_the_adapter(self, released, tmp_path):
        trained = adapt(released, tmp_path / "adapter")
        trained.save_pretrained(tmp_path / "saved")
        assert torch.equal(continuation(load(tmp_path / "saved")), continuation(trained))

    def test_its_training_goes_on_from_a_checkpoint(self, released, tmp_path):
        arguments = dict(peft_config=LORA, max_steps=4, save_strategy="steps", save_steps=2, learning_rate=1e-2)
        torch.manual_seed(1)
        whole = trainer_of(tmp_path / "whole", load(released), **arguments)
        whole.train()
        torch.manual_seed(2)
        resumed = trainer_of(tmp_path / "resumed", load(released), **arguments)
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
        assert losses(resumed)[-2:] == losses(whole)[-2:]
        assert changed(weights(whole.sol.policy), resumed.sol.policy) == set()

    def test_a_loaded_adapter_is_trained_further(self, released, tmp_path):
        adapt(released, tmp_path / "adapter")
        model = load(released)
        model.policy = PeftModel.from_pretrained(model.policy, tmp_path / "adapter", is_trainable=True)
        before = weights(model.policy)
        trainer_of(tmp_path / "further", model).train()
        assert changed(before, model.policy) == {name for name in before if "lora" in name}
        assert "forward" not in vars(model.policy.get_base_model())


class TestPolicyBeneathAnAdapter:
    """Where the policy that an adapter was trained on comes from when the adapter is loaded."""

    def test_a_fresh_policy_is_saved_too(self, tmp_path):
        model = control(tiny_base("llama"))
        model.policy.float()
        trainer = trainer_of(
            tmp_path, model, peft_config=LORA, learning_rate=1e-2, save_strategy="steps", save_steps=1
        )
        trainer.train()
        trainer.save_model()
        for folder in (tmp_path, tmp_path / "checkpoint-2"):
            assert adapter_config(folder)["base_model_name_or_path"] is None
            again = load(folder)
            assert torch.equal(continuation(again), continuation(model))
            assert torch.equal(logits(again), logits(model))

    def test_a_policy_that_was_trained_further_is_saved_too(self, released, tmp_path):
        model = load(released)
        trainer_of(tmp_path / "further", model, learning_rate=1e-2).train()
        trainer = trainer_of(tmp_path / "adapter", model, peft_config=LORA, learning_rate=1e-2)
        trainer.train()
        trainer.save_model()
        assert torch.equal(logits(load(tmp_path / "adapter")), logits(model))

    def test_a_run_on_a_fresh_policy_goes_on(self, tmp_path):
        arguments = dict(peft_config=LORA, max_steps=3, save_strategy="steps", save_steps=2, learning_rate=1e-2)
        whole = trainer_of(tmp_path / "whole", control(tiny_base("llama")), **arguments)
        whole.train()
        other = control(tiny_base("llama"))
        torch.manual_seed(99)
        other.policy.apply(lambda module: getattr(module, "reset_parameters", lambda: None)())
        resumed = trainer_of(tmp_path / "resumed", other, **arguments)
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
        assert changed(weights(whole.sol.policy), resumed.sol.policy) == set()

    def test_saving_changes_nothing_that_is_drawn(self, tmp_path):
        model = control(tiny_base("llama"))
        trainer = trainer_of(tmp_path, model, peft_config=LORA)
        before = torch.random.get_rng_state()
        trainer.save_model()
        assert torch.equal(torch.random.get_rng_state(), before)

    def test_a_local_folder_is_no_name(self, released, tmp_path):
        model = load(released)
        trainer_of(tmp_path, model, peft_config=LORA)
        save_policy(model, tmp_path / "here", None)
        save_policy(model, tmp_path / "there", "somebody/adapter")
        assert adapter_config(tmp_path / "here")["base_model_name_or_path"] is None
        assert adapter_config(tmp_path / "there")["base_model_name_or_path"] == "somebody/adapter", (
            "it holds the policy"
        )
        for folder in (tmp_path / "here", tmp_path / "there"):
            assert (folder / "model.safetensors").exists() and files_with(folder, str(released)) == []


def adapter_config(folder: Path) -> dict:
    return json.loads((folder / "adapter_config.json").read_text())


@torch.no_grad()
def logits(model: SOLForCausalLM) -> torch.Tensor:
    """Of the policy, for made-up observations."""
    generator = torch.Generator().manual_seed(0)
    config, width = model.config, 2 + 2 * len(model.action_space.axes)
    return model.policy(
        hidden_states=torch.randn(2, 6, config.base_hidden_size, generator=generator),
        token_embeddings=torch.randn(2, 6, config.base_embedding_size, generator=generator),
        scalars=torch.rand(2, 6, width, generator=generator),
        previous_actions=torch.zeros(2, 6, dtype=torch.long),
    ).logits


class TestBaseWithAnAdapter:
    @pytest.fixture
    def adapted(self):
        torch.manual_seed(5)
        config = LoraConfig(target_modules=["q_proj", "up_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
        return get_peft_model(tiny_base("llama"), config).eval()

    @torch.no_grad()
    def test_dense_is_bitwise_the_adapted_model(self, adapted):
        model = SOLForCausalLM.from_base(adapted, SOLConfig(**SETTINGS))
        wanted = adapted(input_ids=PROMPT, attention_mask=PADDED).logits
        assert torch.equal(model(PROMPT, attention_mask=PADDED).logits, wanted)
        assert not torch.equal(wanted, tiny_base("llama")(PROMPT, attention_mask=PADDED).logits)
        arguments = dict(attention_mask=PADDED, max_new_tokens=6, do_sample=False)
        assert torch.equal(model.generate(PROMPT, **arguments), adapted.generate(input_ids=PROMPT, **arguments))

    @torch.no_grad()
    def test_a_dense_schedule_is_the_adapted_model(self, adapted):
        model = SOLForCausalLM.from_base(adapted, SOLConfig(**SETTINGS))
        scored = model.score(PROMPT, context_length=12, return_logits=True, token_keep=1.0, mlp_keep=1.0, bits=16)
        torch.testing.assert_close(scored.logits, adapted(input_ids=PROMPT).logits[:, 12:-1], atol=1e-5, rtol=0)

    def test_a_budget_reaches_the_adapted_layers(self, adapted):
        model = SOLForCausalLM.from_base(adapted, SOLConfig(**SETTINGS))
        merged = control(adapted.merge_and_unload())
        merged.policy = model.policy
        torch.testing.assert_close(
            model.score(PROMPT, context_length=12, **HALF).logprobs,
            merged.score(PROMPT, context_length=12, **HALF).logprobs,
        )

    def test_its_name_is_not_taken_for_that_of_the_plain_base(self, adapted, tmp_path):
        adapted.get_base_model().config._name_or_path = "somebody/base"
        model = SOLForCausalLM.from_base(adapted, SOLConfig(**SETTINGS))
        assert model.config.base_model_name_or_path is None
        model.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="names no base model"):
            SOLForCausalLM.from_pretrained(tmp_path)
        loaded = SOLForCausalLM.from_pretrained(tmp_path, base=adapted)
        assert loaded.base is adapted.get_base_model()

    def test_a_policy_is_trained_on_it(self, adapted, tmp_path):
        model = SOLForCausalLM.from_base(adapted, SOLConfig(**SETTINGS))
        before = weights(adapted)
        trainer_of(tmp_path, model).train()
        assert changed(before, adapted) == set()

    def test_virtual_tokens_are_refused(self):
        config = PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
        with pytest.raises(ValueError, match="PREFIX_TUNING has virtual tokens"):
            SOLForCausalLM.from_base(get_peft_model(tiny_base("llama"), config))
