# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Saving over what is there already: what is loaded afterwards is what was saved last, and nothing else is lost."""

from pathlib import Path

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects

from sol_hf import SOLForCausalLM
from sol_hf.hub import adapter_saving, saving
from sol_hf.hub.owned_files import owned_files
from sol_hf.training.checkpoints import NOT_PUSHED
from support.adapters import adapted, continuation
from support.policy_folders import load, save_policy
from support.trainers import trainer_of


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def released(tmp_path) -> Path:
    return save_policy(tmp_path / "released")


def save(model: SOLForCausalLM, folder: Path) -> None:
    model.save_pretrained(folder)


def save_by_trainer(model: SOLForCausalLM, folder: Path) -> None:
    if not any(parameter.requires_grad for parameter in model.policy.parameters()):
        model.policy.requires_grad_(True)
    trainer_of(folder, model).save_model()


@pytest.mark.parametrize("way", [save, save_by_trainer])
class TestAPolicyAndAnAdapter:
    def test_a_merged_policy_over_its_adapter(self, released, tmp_path, way):
        model = adapted(released)
        way(model, tmp_path / "saved")
        model.policy = model.policy.merge_and_unload()
        wanted = continuation(model)
        way(model, tmp_path / "saved")
        assert torch.equal(continuation(load(tmp_path / "saved")), wanted)
        assert not any(name.startswith("adapter_") for name in names(tmp_path / "saved"))

    def test_an_adapter_that_names_its_policy_over_another_policy(self, released, tmp_path, monkeypatch, way):
        monkeypatch.setattr(adapter_saving, "_is_stored", lambda policy, repo_id, revision: True)
        way(load(released), tmp_path / "saved")
        (tmp_path / "saved" / "mine.txt").write_text("mine")
        model = adapted(released)
        inner = model.policy.get_base_model()
        inner.__dict__["name_or_path"] = inner.config.name_or_path = "somebody/policy"
        way(model, tmp_path / "saved")
        left = names(tmp_path / "saved")
        assert {"adapter_config.json", "adapter_model.safetensors", "mine.txt"} <= left
        assert not left & {"config.json", "model.safetensors"}
        with pytest.raises(OSError, match="somebody/policy"):
            load(tmp_path / "saved")

    def test_an_adapter_beside_its_policy_over_shards(self, released, tmp_path, way):
        load(released).save_pretrained(tmp_path / "saved", max_shard_size=4000)
        model = adapted(released)
        way(model, tmp_path / "saved")
        assert torch.equal(continuation(load(tmp_path / "saved")), continuation(model))
        assert not list((tmp_path / "saved").glob("model*-*")) + list((tmp_path / "saved").glob("*.index.json"))


def stored_value(folder: Path, **kwargs) -> float:
    from sol_hf import SOLPolicyModel

    return SOLPolicyModel.from_pretrained(folder, **kwargs).final_norm.bias[0].item()


def set_value(model: SOLForCausalLM, value: float) -> SOLForCausalLM:
    with torch.no_grad():
        model.policy.final_norm.bias.fill_(value)
    return model


class TestVariants:
    def test_each_keeps_its_own_weights(self, released, tmp_path):
        model, folder = load(released), tmp_path / "saved"
        set_value(model, 1).save_pretrained(folder)
        set_value(model, 2).save_pretrained(folder, variant="fp16")
        assert (stored_value(folder), stored_value(folder, variant="fp16")) == (1, 2)
        set_value(model, 3).save_pretrained(folder)
        assert (stored_value(folder), stored_value(folder, variant="fp16")) == (3, 2)

    @pytest.mark.parametrize(("variant", "other"), [("fp16", None), (None, "fp16")])
    def test_shards_are_those_of_one_variant(self, released, tmp_path, variant, other):
        model, folder = load(released), tmp_path / "saved"
        set_value(model, 1).save_pretrained(folder, variant=other, max_shard_size=4000)
        set_value(model, 2).save_pretrained(folder, variant=variant, max_shard_size=4000)
        kept = names(folder)
        set_value(model, 3).save_pretrained(folder, variant=variant)
        assert (stored_value(folder, variant=other), stored_value(folder, variant=variant)) == (1, 3)
        removed = kept - names(folder)
        assert len(removed) > 2 and all(("fp16" in name) == (variant == "fp16") for name in removed)


class TestErrors:
    def test_those_that_are_not_of_the_disk_are_raised_as_they_are(self, released, tmp_path, monkeypatch):
        def fail(*args, **kwargs):
            raise FileNotFoundError(2, "No such file", "template.md")

        monkeypatch.setattr(saving, "build_card", fail)
        with pytest.raises(FileNotFoundError) as raised:
            load(released).save_pretrained(tmp_path / "saved")
        assert raised.value.filename == "template.md" and "disk" not in str(raised.value)
        assert names(tmp_path / "saved") == set()

    def test_files_that_were_replaced_in_part_are_not_said_to_be_as_before(self, released):
        (released / "sol_remote.py").unlink()
        (released / "sol_remote.py").mkdir()
        with pytest.raises(OSError, match="Some files in .*released are new and others are not") as raised:
            load(released).save_pretrained(released)
        assert "as before" not in str(raised.value)

    def test_a_save_that_dies_between_two_files_leaves_what_is_refused(self, released, tmp_path, monkeypatch):
        model, folder = adapted(released), tmp_path / "saved"
        model.save_pretrained(folder)
        model.policy = model.policy.merge_and_unload()
        original = Path.replace

        def die(self, target):
            if Path(target).name == "config.json":
                raise KeyboardInterrupt
            return original(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", die)
            with pytest.raises(KeyboardInterrupt):
                model.save_pretrained(folder)
        with pytest.raises(ValueError, match="no adapter_model.safetensors"):
            load(folder)
        model.save_pretrained(folder)
        assert torch.equal(continuation(load(folder)), continuation(model))


def test_names_of_other_files_are_not_owned():
    theirs = ["modelling.safetensors", "models/a.safetensors", "model.fp16.safetensors", "tokenizer_config.json"]
    assert list(filter_repo_objects(theirs, allow_patterns=list(owned_files()))) == []


def test_what_is_being_written_is_not_pushed():
    unfinished = [".unfinished-x1/model.safetensors", ".unfinished/checkpoint-2/model.safetensors"]
    assert list(filter_repo_objects([*unfinished, "model.safetensors"], ignore_patterns=NOT_PUSHED)) == [
        "model.safetensors"
    ]
