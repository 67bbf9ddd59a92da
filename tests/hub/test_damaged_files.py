# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Damaged or hostile files of a policy: refused, with a message that names the file and what is wrong with it."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from sol_hf import SOLForCausalLM, SOLPolicyModel
from support.bases import tiny_base
from support.cases import HALF, prompts
from support.policy_folders import change_json, load, save_policy, stored, warnings_of


WEIGHTS = "model.safetensors"
PROMPT = prompts(rows=1, length=12)


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    return save_policy(tmp_path_factory.mktemp("released"))


@pytest.fixture
def folder(released, tmp_path) -> Path:
    """A copy of the policy, to be damaged."""
    return shutil.copytree(released, tmp_path, dirs_exist_ok=True)


def change_weights(folder: Path, change) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def assert_refused(folder: Path, message: str, error: type[Exception] = ValueError) -> None:
    """Every way of loading refuses the folder, and names it."""
    for way in (load, SOLPolicyModel.from_pretrained, AutoModel.from_pretrained):
        with pytest.raises(error, match=message) as caught:
            way(folder)
        assert str(folder) in str(caught.value)


class TestWeights:
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_values_that_are_not_finite(self, folder, value):
        change_weights(folder, lambda tensors: tensors["action_head.bias"].__setitem__(3, value))
        assert_refused(folder, "damaged: action_head.bias has values that are NaN or infinite")

    @pytest.mark.parametrize("size", [0, 4, 100, 5000])
    def test_a_truncated_file(self, folder, size):
        (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:size])
        assert_refused(folder, "model.safetensors are truncated or corrupt .*: fetch them again")

    def test_a_header_of_exabytes(self, folder):
        (folder / WEIGHTS).write_bytes((2**60).to_bytes(8, "little") + b"{}")
        assert_refused(folder, "truncated or corrupt")

    def test_a_missing_a_strange_and_a_misshapen_tensor(self, folder):
        change_weights(folder, lambda tensors: tensors.pop("final_norm.weight"))
        change_weights(folder, lambda tensors: tensors.update(extra=torch.zeros(2)))
        change_weights(folder, lambda tensors: tensors.update({"value_head.bias": torch.zeros(7)}))
        assert_refused(
            folder, r"missing final_norm.weight; unexpected extra; value_head.bias has shape \(7,\), .* \(1,\)"
        )

    def test_heads_that_are_missing(self, folder):
        change_weights(folder, lambda tensors: tensors.pop("action_head.weight"))
        with pytest.raises(ValueError, match="missing action_head.weight"):
            load(folder)
        with warnings_of() as records:
            SOLPolicyModel.from_pretrained(folder)
        assert any("action_head.weight" in text for text in records), "transformers says that it starts fresh"

    def test_a_tensor_that_holds_no_floats(self, folder):
        change_weights(folder, lambda tensors: tensors.update({"value_head.bias": torch.zeros(1, dtype=torch.int8)}))
        assert_refused(folder, "value_head.bias has dtype I8, not one of F64, F32, F16, BF16")

    def test_a_config_of_a_huge_policy_allocates_none(self, folder):
        change_json(folder / "config.json", policy_hidden_size=4096)
        assert_refused(folder, r"the config asks for \(4096, 160\)")

    def test_pickled_weights_are_never_read(self, folder, tmp_path):
        class Bomb:
            def __reduce__(self):
                return (Path.touch, (tmp_path / "exploded",))

        (folder / WEIGHTS).unlink()
        for name in ("pytorch_model.bin", "adapter_model.bin"):
            (folder / name).write_bytes(pickle.dumps(Bomb()))
        assert_refused(folder, r"has no model.safetensors\. .* never from pickled ones", OSError)
        with pytest.raises(ValueError, match="safetensors files only: leave out `use_safetensors`"):
            SOLPolicyModel.from_pretrained(folder, use_safetensors=False)
        assert not (tmp_path / "exploded").exists()

    @pytest.mark.parametrize(
        "name", ["../other.safetensors", "/etc/passwd", "a/b.safetensors", "weights.bin", 3, None]
    )
    def test_an_index_that_leads_elsewhere(self, folder, name):
        (folder / WEIGHTS).unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"final_norm.weight": name}}))
        assert_refused(folder, "must name safetensors files in its own folder")

    def test_files_that_transformers_would_read_instead(self, folder):
        (folder / "shard-00001-model-00001-of-00001.safetensors").write_bytes((folder / WEIGHTS).read_bytes())
        assert_refused(folder, "has files of a distributed checkpoint .*: remove them")

    def test_an_index_with_a_missing_shard(self, folder):
        (folder / WEIGHTS).rename(folder / "model-00001-of-00002.safetensors")
        shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
        assert_refused(folder, "names files that .* lacks: model-00002-of-00002.safetensors")

    def test_shards_that_are_whole_are_loaded(self, released, tmp_path):
        model = load(released)
        model.save_pretrained(tmp_path, max_shard_size="10KB")
        assert not (tmp_path / WEIGHTS).exists() and len(list(tmp_path.glob("model-*.safetensors"))) > 1
        again = load(tmp_path).policy.state_dict()
        assert all(torch.equal(again[name], tensor) for name, tensor in model.policy.state_dict().items())


class TestConfig:
    @pytest.mark.parametrize("content", ["null", "[]", "3", "{", ""])
    def test_a_file_that_is_no_object(self, folder, content):
        (folder / "config.json").write_text(content)
        for way in (load, SOLPolicyModel.from_pretrained):
            with pytest.raises(ValueError, match="config.json") as caught:
                way(folder)
            assert str(folder) in str(caught.value)

    def test_no_file_at_all(self, tmp_path):
        with pytest.raises(OSError, match="has no config.json: it is neither a policy nor an adapter"):
            load(tmp_path)

    def test_a_language_model(self, tmp_path):
        tiny_base("llama").save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=r"of type 'llama', not of a policy.*from_base\(model\)"):
            SOLForCausalLM.from_pretrained(tmp_path)


class TestStoredOptions:
    @pytest.mark.parametrize("content", ["null", "[]", "3", '{"token_keep": 0.5', "", "\x00"])
    def test_a_damaged_file_is_an_error(self, folder, content):
        (folder / "generation_config.json").write_text(content)
        with pytest.raises(ValueError, match="generation_config.json"):
            load(folder)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("token_keep", 0.01),
            ("token_keep", "half"),
            ("token_keep", float("nan")),
            ("bits", -1),
            ("compute", 0.5),
            ("compute_unit", "evil"),
            ("budget_mode", "none"),
            ("budget_horizon", "forever"),
            ("exact", "yes"),
            ("kv_refresh", [1]),
            ("action_temperature", "hot"),
            ("action_temperature", float("nan")),
            ("backend", "evil"),
            ("temperature", "hot"),
            ("temperature", float("nan")),
            ("max_new_tokens", -5),
            ("top_k", 0.5),
            ("do_sample", "yes"),
        ],
    )
    def test_a_value_that_no_generation_could_use(self, folder, key, value):
        change_json(folder / "generation_config.json", **{key: value})
        with pytest.raises(ValueError, match="generation_config.json.*"):
            load(folder)

    def test_an_absent_file_leaves_the_bases(self, folder):
        (folder / "generation_config.json").unlink()
        assert load(folder).generation_config.to_dict() == tiny_base("llama").generation_config.to_dict() | {
            "_from_model_config": False
        }

    def test_soft_budgets_of_a_stranger_are_ignored_with_a_warning(self, folder):
        change_json(folder / "generation_config.json", budget_mode="soft", token_keep=0.5)
        with warnings_of() as records:
            model = load(folder)
        assert any('`budget_mode="soft"`, which is ignored' in text for text in records)
        output = model.generate(PROMPT, max_new_tokens=13, mlp_keep=0.6, token_keep=0.4, return_dict_in_generate=True)
        assert output.realised[0, 1] <= 0.6 + 0.4 / 13 + 1e-5
        model.generation_config.budget_mode = "soft"  # the owner of the process may
        model.save_pretrained(folder)

    def test_a_stranger_cannot_lengthen_the_horizon_of_a_budget(self, folder):
        change_json(folder / "generation_config.json", budget_horizon="generation", token_keep=0.5)
        assert load(folder).generation_config.budget_horizon == "generation"  # which is the default
        base = tiny_base("llama")
        base.generation_config.budget_horizon = "episode"
        with warnings_of() as records:
            model = SOLForCausalLM.from_pretrained(folder, base=base)
        assert any('`budget_horizon="generation"`, which is ignored' in text for text in records)
        assert model.generation_config.budget_horizon == "episode"
        change_json(folder / "generation_config.json", budget_horizon="episode")
        assert load(folder).generation_config.budget_horizon == "episode"  # a policy may be stricter

    def test_special_tokens_of_another_base_are_ignored_with_a_warning(self, folder):
        change_json(folder / "generation_config.json", eos_token_id=[7, 8], pad_token_id=9, bad_words_ids=[[4]])
        with warnings_of() as records:
            model = load(folder)
        assert model.generation_config.eos_token_id is None and model.generation_config.pad_token_id == 0
        assert any("bad_words_ids, eos_token_id, pad_token_id, which is ignored" in text for text in records)

    def test_options_that_cost_what_they_like_are_ignored_with_a_warning(self, folder):
        change_json(folder / "generation_config.json", num_beams=10**6, num_return_sequences=10**6, use_cache=False)
        with warnings_of() as records:
            assert load(folder).generation_config.num_beams in (None, 1)
        assert any("num_beams, num_return_sequences, use_cache, which is ignored" in text for text in records)

    def test_budgets_and_sampling_of_the_policy_are_used(self, folder):
        change_json(folder / "generation_config.json", token_keep=0.5, kv_refresh=False, temperature=0.7, top_k=5)
        with warnings_of() as records:
            config = load(folder).generation_config
        assert (config.token_keep, config.kv_refresh, config.temperature, config.top_k) == (0.5, False, 0.7, 5)
        assert records == []


def test_the_policy_keeps_its_dtype_whatever_the_base_is_loaded_in(released, tmp_path):
    base = tmp_path / "base"
    tiny_base("llama").save_pretrained(base)
    change_json(released / "config.json", base_model_name_or_path=str(base))
    try:
        model = SOLForCausalLM.from_pretrained(released, dtype=torch.float16, attn_implementation="eager")
        assert model.base.dtype == torch.float16 and model.policy.dtype == torch.float32
        assert model.base.config._attn_implementation == "eager"
        assert len(model.score(PROMPT, context_length=10, **HALF).logprobs) == 1
    finally:
        change_json(released / "config.json", base_model_name_or_path=stored(released)["base_model_revision"])
