# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The base of a policy: how it is found, what it is trusted with, and whether it is the right one."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    T5Config,
    pipeline,
)

from sol_hf import SOLConfig, SOLForCausalLM
from sol_hf.hub import base_loading, base_model
from support.bases import tiny_base
from support.cases import HALF, SETTINGS, control, prompts
from support.policy_folders import change_json, files_with, load, save_policy, stored, tiny_tokenizer, warnings_of


PROMPT = prompts(rows=2, length=20)
REMOTE_CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM

Path(__file__).parent.joinpath("ran").touch()
Path({marker!r}).touch()


class RemoteConfig(LlamaConfig):
    model_type = "remote_llama"


class RemoteForCausalLM(LlamaForCausalLM):
    config_class = RemoteConfig
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    return save_policy(tmp_path / "policy")


@pytest.fixture
def base_folder(tmp_path) -> Path:
    tiny_base("llama").save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def calls(monkeypatch, base_folder) -> list[dict]:
    """What is asked of transformers to load a base; it gets one from a folder."""
    asked, original = [], AutoModelForCausalLM.from_pretrained

    def record(name, **kwargs):
        asked.append({"name": name, **kwargs})
        return original(base_folder)

    monkeypatch.setattr(base_loading.AutoModelForCausalLM, "from_pretrained", record)
    return asked


class TestTrust:
    def test_token_trust_and_revision_end_at_the_policy(self, folder, calls):
        change_json(folder / "config.json", base_model_name_or_path="somebody/base", base_model_revision="v1")
        arguments = dict(token="hf_secret", trust_remote_code=True, revision="mine", cache_dir="/nowhere")
        SOLForCausalLM.from_pretrained(folder, **arguments, dtype=torch.float32)
        expected = dict(name="somebody/base", revision="v1", trust_remote_code=False)
        assert calls == [{**expected, "cache_dir": "/nowhere", "dtype": torch.float32}]

    def test_the_base_has_its_own(self, folder, calls):
        change_json(folder / "config.json", base_model_name_or_path="somebody/base")
        SOLForCausalLM.from_pretrained(folder, base_token="hf_b", base_trust_remote_code=True, base_revision="v2")
        assert calls == [dict(name="somebody/base", revision="v2", trust_remote_code=True, token="hf_b")]

    def test_the_auto_class_passes_them_on(self, folder, base_folder, monkeypatch):
        change_json(folder / "config.json", base_model_name_or_path="somebody/base")
        asked = []
        monkeypatch.setattr(
            "sol_hf.hub.policy_loading.load_base", lambda config, policy, access, **kw: asked.append((access, kw))
        )
        with pytest.raises(ValueError, match="must be a causal LM"):
            AutoModelForCausalLM.from_pretrained(
                folder, trust_remote_code=True, token="hf_p", base_token="hf_b", attn_implementation="eager"
            )
        access, arguments = asked[0]
        assert (access.token, access.trust_remote_code) == ("hf_b", False)
        assert arguments == {"attn_implementation": "eager"}

    def test_code_of_the_base_runs_only_when_the_base_is_trusted(self, folder, base_folder, tmp_path):
        marker = tmp_path / "code_ran"
        (base_folder / "remote.py").write_text(REMOTE_CODE.format(marker=str(marker)))
        classes = {"AutoConfig": "remote.RemoteConfig", "AutoModelForCausalLM": "remote.RemoteForCausalLM"}
        change_json(base_folder / "config.json", model_type="remote_llama", auto_map=classes)
        change_json(folder / "config.json", base_model_name_or_path=str(base_folder), base_fingerprint=None)
        with pytest.raises(ValueError, match="pass `base_trust_remote_code=True`"):
            SOLForCausalLM.from_pretrained(folder, trust_remote_code=True)
        assert not marker.exists()
        model = SOLForCausalLM.from_pretrained(folder, base_trust_remote_code=True)
        assert marker.exists() and type(model.base).__name__ == "RemoteForCausalLM"

    def test_code_in_the_policys_folder_never_runs(self, folder, tmp_path):
        marker = tmp_path / "code_ran"
        (folder / "sol_remote.py").write_text(f"from pathlib import Path\nPath({str(marker)!r}).touch()\n")
        load(folder, trust_remote_code=True)
        AutoModel.from_pretrained(folder, trust_remote_code=True)
        AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, base=tiny_base("llama"))
        assert not marker.exists()

    def test_a_pull_request_on_the_base_is_not_loaded_unasked(self, folder, calls):
        stored_names = dict(base_model_name_or_path="somebody/base", base_model_revision="refs/pr/7")
        change_json(folder / "config.json", **stored_names)
        with pytest.raises(ValueError, match=r"at refs/pr/7. Anybody can open .*`base_revision=`"):
            SOLForCausalLM.from_pretrained(folder)
        assert calls == []
        SOLForCausalLM.from_pretrained(folder, base_revision="refs/pr/7")
        assert calls[0]["revision"] == "refs/pr/7"

    def test_a_policy_that_names_itself_as_its_base(self, folder):
        change_json(folder / "config.json", base_model_name_or_path=str(folder))
        with pytest.raises(ValueError, match=r"is itself a policy .*pass it with `base=`"):
            SOLForCausalLM.from_pretrained(folder)


class TestMissingBase:
    def test_a_local_base_is_not_named(self, base_folder, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for place in (base_folder, "base", "./base"):
            base = AutoModelForCausalLM.from_pretrained(place)
            model = SOLForCausalLM.from_base(base, SOLConfig(**SETTINGS))
            tiny_tokenizer().save_pretrained(base_folder)
            model.save_pretrained(tmp_path / "policy", tokenizer=AutoTokenizer.from_pretrained(place))
            assert stored(tmp_path / "policy")["base_model_name_or_path"] is None
            assert files_with(tmp_path / "policy", str(tmp_path)) == []

    def test_a_path_that_the_user_has_set_is_not_written(self, base_folder, tmp_path):
        config = SOLConfig(**SETTINGS, base_model_name_or_path=str(base_folder))
        SOLForCausalLM.from_base(tiny_base("llama"), config).save_pretrained(tmp_path / "policy")
        assert config.to_dict()["base_model_name_or_path"] is None
        assert files_with(tmp_path / "policy", str(tmp_path)) == []

    @pytest.mark.parametrize("name", [None, "/home/somebody/base", "../base", "C:\\models\\base", "a/b/c"])
    def test_the_message_says_that_the_base_is_missing(self, folder, name):
        change_json(folder / "config.json", base_model_name_or_path=name)
        for way in (SOLForCausalLM.from_pretrained, AutoModelForCausalLM.from_pretrained):
            with pytest.raises(ValueError, match=r"The base of the policy in .* is missing.*`base=`"):
                way(folder)

    def test_a_base_that_the_hub_does_not_have(self, folder):
        change_json(folder / "config.json", base_model_name_or_path="somebody/base")
        with pytest.raises(OSError, match=r"(?s)The base somebody/base of the policy in .*pass `base_token=`"):
            SOLForCausalLM.from_pretrained(folder)


class TestCommit:
    COMMIT = "0123456789abcdef0123456789abcdef01234567"

    def test_a_commit_that_transformers_notes(self, tmp_path):
        base = tiny_base("llama")
        base.config._name_or_path, base.config._commit_hash = "somebody/base", self.COMMIT
        SOLForCausalLM.from_base(base, SOLConfig(**SETTINGS)).save_pretrained(tmp_path)
        assert stored(tmp_path)["base_model_name_or_path"] == "somebody/base"
        assert stored(tmp_path)["base_model_revision"] == self.COMMIT

    def test_a_folder_of_the_cache_stands_for_its_repository(self, tmp_path):
        snapshot = tmp_path / "hub" / "models--some-body--my--base" / "snapshots" / self.COMMIT
        tiny_base("llama").save_pretrained(snapshot)
        model = SOLForCausalLM.from_base(AutoModelForCausalLM.from_pretrained(snapshot), SOLConfig(**SETTINGS))
        assert model.config.base_model_name_or_path == "some-body/my--base"
        assert model.config.base_model_revision == self.COMMIT

    @pytest.mark.parametrize("others", ["none", "of other weights", "without weights"])
    def test_the_only_commit_in_the_cache(self, tmp_path, monkeypatch, others):
        snapshots = tmp_path / "models--somebody--base" / "snapshots"
        tiny_base("llama").save_pretrained(snapshots / self.COMMIT)
        if others == "of other weights":
            tiny_base("llama").save_pretrained(snapshots / self.COMMIT[::-1])
        elif others == "without weights":
            (snapshots / self.COMMIT / "model.safetensors").unlink()
        monkeypatch.setattr(base_model.constants, "HF_HUB_CACHE", str(tmp_path))
        base = tiny_base("llama")
        base.config._name_or_path = "somebody/base"
        revision = SOLForCausalLM.from_base(base, SOLConfig(**SETTINGS)).config.base_model_revision
        assert revision == (self.COMMIT if others == "none" else None)

    def test_another_base_than_the_named_one_lends_no_commit(self):
        base = tiny_base("llama")
        base.config._name_or_path, base.config._commit_hash = "somebody/base", self.COMMIT
        model = SOLForCausalLM.from_base(base, SOLConfig(**SETTINGS, base_model_name_or_path="somebody/other"))
        assert model.config.base_model_revision is None


class TestFingerprint:
    def test_it_is_stored_and_the_same_base_passes_in_silence(self, folder):
        assert stored(folder)["base_fingerprint"]["num_hidden_layers"] == 2
        with warnings_of() as records:
            for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
                SOLForCausalLM.from_pretrained(folder, base=tiny_base("llama").to(dtype))
        assert records == []

    def test_another_model_of_equal_sizes_is_named(self, folder):
        other = tiny_base("llama")
        other.apply(other._init_weights)
        other.config._name_or_path = "somebody/other"
        with warnings_of() as records:
            SOLForCausalLM.from_pretrained(folder, base=other)
        assert any("weights of somebody/other are those of another model" in text for text in records)

    def test_a_copy_that_differs_a_little_is_named(self, folder):
        copy = tiny_base("llama")
        for parameter in copy.parameters():
            parameter.data += 0.05 * parameter.data.std() * torch.randn_like(parameter)
        with warnings_of() as records:
            SOLForCausalLM.from_pretrained(folder, base=copy)
        assert any("quantized or fine-tuned copy" in text for text in records)

    @pytest.mark.parametrize(
        "change", [{"num_hidden_layers": 3}, {"num_attention_heads": 2}, {"intermediate_size": 48}]
    )
    def test_another_model_of_another_shape_is_refused_with_a_way_out(self, folder, change):
        base = tiny_base("llama", **change)
        (name, value), *_ = change.items()
        with pytest.raises(ValueError, match=rf"made for another base: .*`{name}` is {value}.*`check_base=False`"):
            SOLForCausalLM.from_pretrained(folder, base=base)
        model = SOLForCausalLM.from_pretrained(folder, base=base, check_base=False)
        assert model.generate(PROMPT, max_new_tokens=3, **HALF).shape == (2, 23)

    def test_another_family_is_refused(self, folder):
        with pytest.raises(ValueError, match="`model_type` is qwen2, not llama"):
            SOLForCausalLM.from_pretrained(folder, base=tiny_base("qwen2"))

    def test_a_resized_vocabulary_is_refused_with_a_way_out(self, folder):
        base = tiny_base("llama")
        base.resize_token_embeddings(120)
        with pytest.raises(ValueError, match="has 120. If its embeddings were resized, pass `check_base=False`"):
            SOLForCausalLM.from_pretrained(folder, base=base)
        assert SOLForCausalLM.from_pretrained(folder, base=base, check_base=False).base is base

    def test_a_base_with_an_adapter_passes(self, folder):
        adapted = get_peft_model(tiny_base("llama"), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
        with warnings_of() as records:
            SOLForCausalLM.from_pretrained(folder, base=adapted)
        assert records == []

    def test_policies_of_earlier_versions_have_none(self, folder):
        content = stored(folder)
        del content["base_fingerprint"]
        (folder / "config.json").write_text(json.dumps(content))
        with warnings_of() as records:
            assert SOLForCausalLM.from_pretrained(folder, base=tiny_base("qwen2")).config.base_fingerprint is None
        assert records == []

    def test_a_config_of_another_policy_gets_the_fingerprint_of_its_new_base(self, folder):
        config = SOLConfig.from_pretrained(folder)
        model = SOLForCausalLM.from_base(tiny_base("qwen2"), config)
        assert model.config.base_fingerprint["model_type"] == "qwen2"
        assert config.base_fingerprint["model_type"] == "llama"


class TestWrongArguments:
    def test_a_name_instead_of_a_model(self, folder):
        message = r"loaded model, not its name: pass AutoModelForCausalLM.from_pretrained\('gpt2'\)"
        with pytest.raises(ValueError, match=message):
            SOLForCausalLM.from_base("gpt2")
        with pytest.raises(ValueError, match=message):
            SOLForCausalLM.from_pretrained(folder, base="gpt2")

    def test_a_model_that_has_a_policy(self, folder):
        model = control(tiny_base("llama"))
        for call in (SOLForCausalLM.from_base, lambda base: SOLForCausalLM.from_pretrained(folder, base=base)):
            with pytest.raises(ValueError, match=r"a model with a policy already: pass the causal LM beneath it"):
                call(model)
            with pytest.raises(ValueError, match=r"this policy itself: pass the causal LM"):
                call(model.policy)

    def test_a_model_without_an_lm_head(self):
        with pytest.raises(ValueError, match="LlamaModel is not a causal LM with an LM head"):
            SOLForCausalLM.from_base(tiny_base("llama").model)
        sizes = dict(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
        with pytest.raises(ValueError, match="not a causal LM"):
            SOLForCausalLM.from_base(AutoModelForSeq2SeqLM.from_config(T5Config(**sizes)))
        with pytest.raises(ValueError, match="must be a causal LM of transformers, got Linear"):
            SOLForCausalLM.from_base(torch.nn.Linear(2, 2))

    def test_a_config_of_another_kind(self):
        base = tiny_base("llama")
        with pytest.raises(ValueError, match="`config` must be a SOLConfig, got LlamaConfig"):
            SOLForCausalLM.from_base(base, base.config)

    def test_arguments_that_would_have_no_effect(self, folder):
        with pytest.raises(ValueError, match="loaded already, so `dtype`, `low_memory` would have no effect"):
            load(folder, dtype=torch.float16, low_memory=True)
        with pytest.raises(ValueError, match="loaded already, so `base_revision` would have no effect"):
            load(folder, base_revision="v1")

    def test_the_loading_info_is_that_of_the_policy(self, folder, base_folder):
        model, info = load(folder, output_loading_info=True)
        assert isinstance(model, SOLForCausalLM) and not info["missing_keys"] and not info["unexpected_keys"]
        change_json(folder / "config.json", base_model_name_or_path=str(base_folder))
        model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        assert isinstance(model, SOLForCausalLM) and not info["missing_keys"]


class TestFreshPolicy:
    def asked(self, model, **options) -> list[str]:
        with warnings_of() as records:
            model.generate(PROMPT, max_new_tokens=3, **options)
        return [text for text in records if "never trained" in text]

    def test_it_says_so_once_when_it_chooses(self):
        model = SOLForCausalLM.from_base(tiny_base("llama"), SOLConfig(**SETTINGS))
        assert self.asked(model) == [], "dense"
        assert len(self.asked(model, **HALF)) == 1
        assert self.asked(model, **HALF) == []

    def test_a_trained_or_loaded_one_does_not(self, folder):
        model = SOLForCausalLM.from_base(tiny_base("llama"), SOLConfig(**SETTINGS))
        with torch.no_grad():
            model.policy.action_head.bias.add_(0.1)
        assert self.asked(model, **HALF) == []
        assert self.asked(load(folder), **HALF) == []

    def test_one_with_a_prior_keeps_the_budget_and_does_not(self):
        model = SOLForCausalLM.from_base(tiny_base("llama"), SOLConfig(**SETTINGS, budget_prior=True))
        assert self.asked(model, **HALF) == []


class TestTokenizer:
    def test_a_policy_that_was_saved_with_one(self, base_folder, tmp_path):
        model = control(tiny_base("llama"))
        model.policy.float()
        model.save_pretrained(tmp_path / "policy", tokenizer=tiny_tokenizer())
        change_json(tmp_path / "policy" / "config.json", base_model_name_or_path=str(base_folder))
        generator = pipeline("text-generation", model=str(tmp_path / "policy"))
        assert isinstance(generator.model, SOLForCausalLM)
        plain = generator("w3 w14 w15", max_new_tokens=4, do_sample=False, return_full_text=False, **HALF)
        assert len(plain[0]["generated_text"].split()) == 4
        messages = [{"role": "user", "content": "w3 w14"}]
        chat = generator(messages, max_new_tokens=4, do_sample=False, **HALF)
        assert chat[0]["generated_text"][0] == messages[0]
        assert files_with(tmp_path / "policy", str(tmp_path)) == ["config.json"], "which the test has changed"

    def test_the_base_lends_its_own(self, folder, base_folder):
        tiny_tokenizer().save_pretrained(base_folder)
        change_json(folder / "config.json", base_model_name_or_path=str(base_folder))
        generator = pipeline("text-generation", model=str(folder))
        assert generator.tokenizer("w3 w14").input_ids == [3, 14]
        assert generator.tokenizer.chat_template

    def test_that_of_a_pull_request_is_not_loaded_unasked(self, folder, monkeypatch):
        asked, original = [], AutoTokenizer.from_pretrained
        change_json(folder / "config.json", base_model_name_or_path="somebody/base", base_model_revision="refs/pr/7")

        def record(name, *args, **kwargs):
            if name != "somebody/base":
                return original(name, *args, **kwargs)
            return asked.append(kwargs["revision"])

        monkeypatch.setattr(AutoTokenizer, "from_pretrained", record)
        for revision in (None, ""):
            with pytest.raises(ValueError, match=r"at refs/pr/7. Anybody can open .*`base_revision=`"):
                AutoTokenizer.from_pretrained(folder, base_revision=revision)
        assert asked == []
        AutoTokenizer.from_pretrained(folder, base_revision="refs/pr/7")
        assert asked == ["refs/pr/7"]

    def test_without_any_the_message_says_where_one_is(self, folder):
        with pytest.raises(ValueError, match=r"has no tokenizer, .*save_pretrained\(folder, tokenizer=tokenizer\)"):
            AutoTokenizer.from_pretrained(folder)
