# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The folder of an adapter on a policy: every way of loading loads the adapter or refuses it."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, pipeline

from sol_hf import SOLConfig, SOLForCausalLM
from sol_hf.hub import adapter_saving
from sol_hf.stored import source
from support.adapters import LORA, adapted, continuation
from support.bases import tiny_base
from support.cases import SETTINGS
from support.policy_folders import change_json, files_with, load, save_policy, stored, tiny_tokenizer, warnings_of


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    return save_policy(tmp_path_factory.mktemp("released"))


@pytest.fixture(params=["save_pretrained", "peft", "named"])
def folder(request, released, tmp_path) -> Path:
    """An adapter as this package saves it, as PEFT does, and beside a policy of which it knows the folder only."""
    model = adapted(released)
    if request.param == "save_pretrained":
        model.save_pretrained(tmp_path / "adapter", tokenizer=tiny_tokenizer())
    else:
        model.policy.save_pretrained(tmp_path / "adapter")
        assert stored(tmp_path / "adapter", "adapter_config.json")["base_model_name_or_path"] == str(released)
    return tmp_path / "adapter"


class TestLoading:
    def test_every_way_loads_the_adapter(self, released, folder):
        wanted, plain = continuation(adapted(released)), continuation(load(released))
        assert not torch.equal(wanted, plain)
        for way in (SOLForCausalLM.from_pretrained, AutoModelForCausalLM.from_pretrained):
            assert torch.equal(continuation(way(folder, base=tiny_base("llama"))), wanted), way
        assert any("lora" in name for name in AutoModel.from_pretrained(folder).state_dict())

    def test_a_pipeline_loads_the_adapter(self, released, folder, tmp_path, monkeypatch):
        tiny_base("llama").save_pretrained(tmp_path / "base")
        for place in {released, folder}:
            if (place / "config.json").exists():
                change_json(place / "config.json", base_model_name_or_path=str(tmp_path / "base"))
        model = pipeline("text-generation", model=str(folder), tokenizer=tiny_tokenizer()).model
        model.generation_config.pad_token_id = 0
        assert torch.equal(continuation(model), continuation(adapted(released)))
        change_json(released / "config.json", base_model_name_or_path=None)

    def test_an_adapter_is_put_on_a_loaded_policy(self, released, folder):
        model = load(released)
        model.policy = PeftModel.from_pretrained(model.policy, folder).eval()
        assert torch.equal(continuation(model), continuation(adapted(released)))

    def test_its_files_are_read_once(self, folder, monkeypatch):
        read, original = [], source.read_json_object
        monkeypatch.setattr(source, "read_json_object", lambda path: read.append(path.name) or original(path))
        load(folder)
        assert read == ["adapter_config.json"]

    def test_what_was_loaded_is_saved_again(self, released, folder, tmp_path):
        load(folder).save_pretrained(tmp_path / "again")
        assert torch.equal(continuation(load(tmp_path / "again")), continuation(adapted(released)))
        assert files_with(tmp_path / "again", str(released.parent)) == []


class TestSaving:
    def test_no_path_is_written_and_the_folder_is_complete(self, released, tmp_path):
        adapted(released).save_pretrained(tmp_path / "adapter")
        assert files_with(tmp_path / "adapter", "/tmp") == files_with(tmp_path / "adapter", str(released.parent)) == []
        assert stored(tmp_path / "adapter", "adapter_config.json")["base_model_name_or_path"] is None
        assert {"model.safetensors", "config.json"} <= {path.name for path in (tmp_path / "adapter").iterdir()}
        mine, theirs = (load_file(path / "model.safetensors") for path in (tmp_path / "adapter", released))
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)

    def test_a_policy_on_the_hub_is_only_named(self, released, tmp_path, monkeypatch):
        monkeypatch.setattr(adapter_saving, "_is_stored", lambda policy, repo_id, revision: True)
        model = adapted(released)
        inner = model.policy.get_base_model()
        inner.__dict__["name_or_path"] = inner.config.name_or_path = "somebody/policy"
        model.save_pretrained(tmp_path)
        assert stored(tmp_path, "adapter_config.json")["base_model_name_or_path"] == "somebody/policy"
        assert not (tmp_path / "model.safetensors").exists()

    def test_a_fresh_policy_is_kept_beneath_its_adapter(self, tmp_path):
        model = SOLForCausalLM.from_base(tiny_base("llama"), SOLConfig(**SETTINGS))
        model.policy = get_peft_model(model.policy, LORA).eval()
        wanted = continuation(model)
        model.save_pretrained(tmp_path)
        assert torch.equal(continuation(load(tmp_path)), wanted)


class TestNames:
    """The adapter that is active is the one that is loaded, whatever it is called."""

    def named(self, released: Path, **adapters: float) -> SOLForCausalLM:
        """The policy with adapters whose weights have these sizes."""
        model = load(released)
        model.policy = get_peft_model(model.policy, LORA, adapter_name=next(iter(adapters)))
        for name, size in adapters.items():
            if name not in model.policy.peft_config:
                model.policy.add_adapter(name, LORA)
            torch.manual_seed(2)
            for full, parameter in model.policy.named_parameters():
                if f"lora_B.{name}" in full:
                    parameter.data.normal_(std=size)
        model.policy.eval()
        return model

    def test_one_that_is_not_called_default(self, released, tmp_path):
        model = self.named(released, mine=1)
        model.save_pretrained(tmp_path / "adapter")
        assert torch.equal(continuation(load(tmp_path / "adapter")), continuation(model))
        assert not torch.equal(continuation(model), continuation(load(released)))
        folders = [path.name for path in (tmp_path / "adapter").iterdir() if path.is_dir()]
        assert folders == ["custom_generate"], "no adapter has a folder of its own"

    def test_the_active_one_of_two(self, released, tmp_path):
        model = self.named(released, default=1, mine=2)
        for name, other in (("mine", "default"), ("default", "mine")):
            model.policy.set_adapter(name)
            with warnings_of() as said:
                model.save_pretrained(tmp_path / name)
            assert any(f"loaded with the active adapter, '{name}'. The others ({other})" in text for text in said)
            assert torch.equal(continuation(load(tmp_path / name)), continuation(model))
            second = load(released)
            second.policy = PeftModel.from_pretrained(second.policy, tmp_path / name / other).eval()
            model.policy.set_adapter(other)
            assert torch.equal(continuation(second), continuation(model))

    def test_two_that_are_active_at_once_are_refused(self, released, tmp_path):
        model = self.named(released, default=1, mine=2)
        model.policy.base_model.set_adapter(["default", "mine"])
        with pytest.raises(ValueError, match="A folder holds one adapter, but .*'default' and 'mine'.*set_adapter"):
            model.save_pretrained(tmp_path)
        assert list(tmp_path.iterdir()) == []


class TestRefused:
    @pytest.fixture
    def adapter(self, released, tmp_path) -> Path:
        adapted(released).policy.save_pretrained(tmp_path / "adapter")
        return tmp_path / "adapter"

    def assert_refused(self, adapter: Path, message: str, error: type[Exception] = ValueError) -> None:
        for way in (SOLForCausalLM.from_pretrained, AutoModelForCausalLM.from_pretrained):
            with pytest.raises(error, match=message):
                way(adapter, base=tiny_base("llama"))

    def test_without_peft(self, adapter, monkeypatch):
        monkeypatch.setattr(source.importlib.util, "find_spec", lambda name: None)
        self.assert_refused(
            adapter, r"The adapter in .* needs peft: pip install 'sol_hf\[train\]'", ModuleNotFoundError
        )

    def test_damaged_weights(self, adapter):
        weights = load_file(adapter / "adapter_model.safetensors")
        next(iter(weights.values()))[0, 0] = float("nan")
        save_file(weights, adapter / "adapter_model.safetensors")
        self.assert_refused(adapter, "NaN or infinite")

    def test_weights_that_are_missing(self, adapter):
        weights = load_file(adapter / "adapter_model.safetensors")
        weights.pop(next(name for name in weights if "lora_B" in name))
        save_file(weights, adapter / "adapter_model.safetensors")
        self.assert_refused(adapter, "The adapter in .* lacks .*lora_B")

    def test_truncated_weights(self, adapter):
        path = adapter / "adapter_model.safetensors"
        path.write_bytes(path.read_bytes()[:40])
        self.assert_refused(adapter, "adapter_model.safetensors are truncated or corrupt")

    def test_pickled_weights(self, adapter):
        (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
        self.assert_refused(adapter, "Adapters are read from safetensors files only")

    @pytest.mark.parametrize("values", [{"r": 10**9}, {"rank_pattern": {"q_proj": 10**9}}, {"r": "x"}])
    def test_ranks_that_would_take_all_memory(self, adapter, values):
        change_json(adapter / "adapter_config.json", **values)
        self.assert_refused(adapter, "adapter_config.json: a rank .*")

    def test_a_language_model_beneath(self, adapter, tmp_path):
        tiny_base("llama").save_pretrained(tmp_path / "base")
        change_json(adapter / "adapter_config.json", base_model_name_or_path=str(tmp_path / "base"))
        with pytest.raises(ValueError, match="of type 'llama', not of a policy"):
            SOLForCausalLM.from_pretrained(adapter)

    @pytest.mark.parametrize("name", [None, 3, "/home/somebody/policy"])
    def test_a_policy_that_is_not_named_or_not_here(self, adapter, name):
        change_json(adapter / "adapter_config.json", base_model_name_or_path=name)
        with pytest.raises(ValueError, match=r"The adapter in .* PeftModel.from_pretrained\(model.policy, adapter\)"):
            load(adapter)

    @pytest.mark.parametrize("content", ["null", "[]", "{"])
    def test_a_damaged_config(self, adapter, content):
        (adapter / "adapter_config.json").write_text(content)
        with pytest.raises(ValueError, match="adapter_config.json"):
            load(adapter)
