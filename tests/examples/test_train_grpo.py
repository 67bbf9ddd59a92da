# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The training script: its YAML files, and the files that a run writes."""

import importlib
import json
import logging
import os
import runpy
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml
from datasets import IterableDataset
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from trl import TrlParser

from sol_hf import SOLConfig, SOLForCausalLM, SOLPolicyModel
from support.paths import ROOT
from support.recipes import SETTINGS, TEXTS


CONFIGS = ROOT / "examples" / "configs"

FULL = dict(
    token_keep=[k / 10 for k in range(1, 11)], mlp_keep=[s / 100 for s in range(40, 101, 5)], bits=[*range(5, 17)]
)
ACTIONS = {"token-keep": 10, "mlp-keep": 13, "bits": 12, "2l": 8, "3l": 27}
BASES = {
    "llama-3.2-3b": "meta-llama/Llama-3.2-3B",
    "llama-3.1-8b": "meta-llama/Llama-3.1-8B",
    "smollm2-135m-published": "smollm2-135m",
}
PUBLISHED_CONFIGS = ["fl", "llama-3.2-1b", *ACTIONS, *BASES]
PUBLISHED = dict(
    context_length=512,
    num_generations=16,
    rollout_batch_size=128,
    temperature=1.3,
    return_kind="sum",
    gamma=0.85,
    kl_reward_weight=0.0,
    penalty_weights=[100, 100, 200],
    penalty_tolerance=0.02,
    advantage_level="process",
    advantage_scale="center",
    whiten_advantages=True,
    learning_rate=1e-4,
    lr_scheduler_type="constant",
    optim="adamw_torch",
    max_grad_norm=2.0,
    epsilon=0.2,
    entropy_coef=0.05,
    beta=0.0,
    num_iterations=1,
)
PUBLISHED_POLICY = dict(
    criterion="quest",
    page_size=8,
    sink_tokens=4,
    window_tokens=2,
    episode_length=16,
    policy_hidden_size=512,
    policy_num_layers=1,
    policy_num_heads=4,
    policy_mlp_ratio=4.0,
    action_embedding_size=32,
    action_head="joint",
    budget_prior=False,
)


@pytest.fixture(scope="module")
def script():
    """The script as a module."""
    sys.path.insert(0, str(ROOT / "examples"))
    yield importlib.import_module("train_grpo")
    sys.path.remove(str(ROOT / "examples"))
    del sys.modules["train_grpo"]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    """Folder of a tiny Llama with its tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    example = runpy.run_path(str(ROOT / "examples" / "generate.py"))
    tokenizer = example["tiny_tokenizer"]()
    tokenizer.save_pretrained(folder)
    example["tiny_base"](tokenizer).save_pretrained(folder)
    return str(folder)


def run(script: ModuleType, folder: Path, base: str, **settings):
    """A run of the script with a YAML file in `folder`; returns the trainer."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump({"base": base, "output_dir": str(folder / "out"), **SETTINGS, **settings}))
    return script.main(["--config", str(config)])


def parse(script: ModuleType, *arguments: str) -> tuple:
    return TrlParser(script.ARGUMENTS).parse_args_and_config(list(arguments))


class TestConfigs:
    @pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
    def test_every_file_is_understood(self, script, path):
        assert len(parse(script, "--config", str(path), "--use_cpu")) == len(script.ARGUMENTS)

    @pytest.mark.parametrize("name", PUBLISHED_CONFIGS)
    def test_published_values(self, script, name):
        settings, policy, args, *_ = parse(script, "--config", str(CONFIGS / f"{name}.yaml"), "--use_cpu")
        assert {key: getattr(args, key) for key in PUBLISHED} == PUBLISHED
        assert {key: getattr(policy, key) for key in PUBLISHED_POLICY} == PUBLISHED_POLICY
        assert args.per_device_train_batch_size * policy.episode_length == 512
        assert args.gradient_accumulation_steps * 512 == 2048
        assert settings.base == BASES.get(name, "meta-llama/Llama-3.2-1B")
        assert settings.dtype == ("float32" if settings.base == "smollm2-135m" else "bfloat16")
        assert args.output_dir == f"policies/{name}"

    @pytest.mark.parametrize("name", PUBLISHED_CONFIGS)
    def test_action_space_and_budgets(self, script, name):
        _, policy, args, *_ = parse(script, "--config", str(CONFIGS / f"{name}.yaml"), "--use_cpu")
        levels = dict(token_keep=policy.token_keep, mlp_keep=policy.mlp_keep, bits=policy.bits)
        assert len(SOLConfig(**levels).action_space) == ACTIONS.get(name, 1560)
        published = dict(token_keep=[0.1, 1.0], mlp_keep=[0.4, 1.0], bits=[5, 16])
        for axis, values in levels.items():
            single = len(values) == 1
            assert values == FULL[axis] or name in ("2l", "3l") or values == FULL[axis][-1:]
            assert getattr(args, f"{axis}_budgets") == ([values[0]] * 2 if single else published[axis])

    def test_defaults_of_the_policy_are_those_of_the_config(self, script):
        arguments, config = script.PolicyArguments(), SOLConfig()
        shared = [field.name for field in fields(arguments) if field.name in SOLConfig.known_keys()]
        assert len(shared) > 15
        for name in shared:
            value = getattr(arguments, name)
            assert value is None or value == getattr(config, name)

    def test_an_option_wins_over_the_file(self, script):
        path = str(CONFIGS / "fl.yaml")
        _, policy, args, *_ = parse(script, "--config", path, "--use_cpu", "--bits", "8", "16", "--gamma", "0.5")
        assert policy.bits == [8, 16] and args.gamma == 0.5


@pytest.mark.parametrize("path", sorted((ROOT / "examples" / "accelerate").glob("*.yaml")), ids=lambda p: p.stem)
def test_accelerate_reads_its_files(path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    expected = {"cpu": "MULTI_GPU", "one_gpu": "NO", "ddp": "MULTI_GPU", "fsdp": "MULTI_GPU"}[path.stem]
    assert config.distributed_type == expected
    assert config.num_processes == (1 if path.stem == "one_gpu" else 2)


def test_a_run_leaves_a_policy_and_its_state(script, tmp_path, base):
    trainer = run(script, tmp_path, base, base_model_name_or_path="somebody/tiny", shuffle_texts_seed=1)
    saved = SOLPolicyModel.from_pretrained(tmp_path / "out")
    assert all(torch.equal(saved.state_dict()[name], w) for name, w in trainer.sol.policy.state_dict().items())
    assert saved.config.base_model_name_or_path == "somebody/tiny"
    assert saved.config.token_keep == [0.5, 1.0] and len(saved.config.action_space) == 8
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert [entry["step"] for entry in state["log_history"] if "loss" in entry] == [1, 2, 3, 4]


class TestNameOfTheBase:
    """The base that was loaded is the one that config and card name."""

    def test_another_base_than_that_of_the_file(self, script, tmp_path, base):
        config = tmp_path / "config.yaml"
        settings = SETTINGS | {"output_dir": str(tmp_path / "out"), "max_steps": 0}
        config.write_text(yaml.safe_dump(settings | {"base": "smollm2-135m"}))
        script.main(["--config", str(config), "--base", base])
        saved = SOLPolicyModel.from_pretrained(tmp_path / "out").config
        assert "SmolLM2" not in str(saved.base_model_name_or_path)
        assert "SmolLM2" not in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")

    @pytest.mark.parametrize("name", ["base_model_name_or_path", "base_model_revision"])
    def test_what_the_file_says_about_its_base_is_not_kept_for_another(self, script, tmp_path, base, name):
        config = tmp_path / "config.yaml"
        config.write_text(yaml.safe_dump({"base": "user/one", name: "user/one", **SETTINGS}))
        with pytest.raises(ValueError, match=f"`--base` is given, but `{name}` 'user/one' in the file belongs to"):
            script.main(["--config", str(config), "--base", base, "--output_dir", str(tmp_path / "out")])
        assert not (tmp_path / "out").exists()

    def test_no_shipped_file_names_its_base_twice(self):
        for path in CONFIGS.glob("*.yaml"):
            assert "base_model_name_or_path" not in yaml.safe_load(path.read_text(encoding="utf-8"))

    def test_smollm2_is_named_as_on_the_hub(self, script, monkeypatch, base):
        monkeypatch.setattr("sol_hf.cli.train_arguments.base_source", lambda name: base)
        arguments = script.ScriptArguments(train_file=TEXTS)
        model = script.PolicyArguments(policy_hidden_size=32).load_model(arguments.load_base()[0])
        assert model.config.base_model_name_or_path == "HuggingFaceTB/SmolLM2-135M-Instruct"


WARMUP = dict(
    warmup_blocks=2,
    warmup_context_length=12,
    warmup_steps_per_block=8,
    warmup_token_keep=[0.5],
    warmup_mlp_keep=[0.5],
    warmup_bits=[8],
    warmup_cost_models=2,
    warmup_updates=2,
    warmup_practice_rounds=0,
    max_steps=0,
)


def test_a_warmup_on_streamed_texts(script, tmp_path, base):
    measured = str(tmp_path / "measured")
    trainer = run(script, tmp_path / "one", base, streaming=True, warmup_dir=measured, **WARMUP)
    again = run(script, tmp_path / "two", base, streaming=True, warmup_dir=measured, **WARMUP)
    one, two = (x.sol.policy.state_dict() for x in (trainer, again))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert (tmp_path / "measured" / "measured-00000.safetensors").exists()


def test_a_warmup_over_a_sharded_base_is_refused_before_it_measures(script, tmp_path, base):
    with pytest.raises(
        ValueError, match="before it is sharded. Run it first, with this command and `--shard_base fal"
    ):
        run(script, tmp_path, base, shard_base=True, warmup_dir=str(tmp_path / "measured"), **WARMUP)
    assert not list(tmp_path.glob("measured/measured*"))


def test_a_run_that_begins_anew_beside_checkpoints_says_so(script, tmp_path, base, caplog):
    for said in (False, True):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="sol_hf"):
            run(script, tmp_path, base)
        assert ("begins anew: --resume goes on" in caplog.text) is said


def test_a_run_goes_on_from_its_last_checkpoint(script, tmp_path, base):
    whole = run(script, tmp_path / "whole", base)
    out = tmp_path / "again" / "out"
    out.mkdir(parents=True)
    os.rename(tmp_path / "whole" / "out" / "checkpoint-2", out / "checkpoint-2")
    resumed = run(script, tmp_path / "again", base, resume=True)
    assert resumed.state.log_history[-2]["loss"] == whole.state.log_history[-2]["loss"]
    assert (tmp_path / "again" / "out" / "checkpoint-4").is_dir()
    one, other = (load_file(tmp_path / name / "out" / "model.safetensors") for name in ("whole", "again"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("budgets", [[[0.5, 0.75, 12]], ["0.5,0.75,12"]])
def test_texts_to_evaluate_on(script, tmp_path, base, budgets, capsys):
    run(script, tmp_path, base, valid_file=TEXTS, max_steps=0, eval_blocks=3, eval_budgets=budgets)
    results = json.loads((tmp_path / "out" / "eval_results.json").read_text())
    assert results["eval_gain"] == results["eval_gain/0.5-0.75-12"]
    head, axes, _, row = capsys.readouterr().out.splitlines()[-4:]
    assert f"at equal cost: {results['eval_gain']:+.4f} ± {results['eval_gain_error']:.4f} nats a token" in head
    assert "token_keep/mlp_keep/bits" in axes and row.split()[:2] == ["0.5/0.75/12", f"{results['eval_gain']:+.4f}"]


def test_budgets_to_evaluate_at_are_options_of_the_command(script):
    line = ["--train_file", TEXTS, "--use_cpu", "--eval_budgets", "0.3,0.6,7", "0.5,0.7,8"]
    assert parse(script, *line)[2].eval_budgets == [[0.3, 0.6, 7.0], [0.5, 0.7, 8.0]]
    with pytest.raises(ValueError, match=r"numbers with commas between them, .* such as 0.5,0.7,8, got '\[0.3\]'"):
        parse(script, *line[:-2], "[0.3]")


def test_the_seed_makes_the_policy(script, tmp_path, base):
    one, same, other = (
        run(script, tmp_path / str(number), base, max_steps=1, seed=seed).sol.policy.state_dict()
        for number, seed in enumerate((1, 1, 2))
    )
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["action_head.weight"], other["action_head.weight"])


def test_resuming_without_a_checkpoint_begins(script, tmp_path, base):
    assert run(script, tmp_path, base, resume=True, max_steps=1).state.global_step == 1


def test_no_steps_save_the_fresh_policy(script, tmp_path, base):
    trainer = run(script, tmp_path, base, max_steps=0)
    assert trainer.state.global_step == 0
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_streamed_texts(script, tmp_path, base):
    trainer = run(script, tmp_path, base, streaming=True, max_steps=2, shuffle_texts_seed=0)
    assert isinstance(trainer.train_dataset, IterableDataset)
    assert trainer.state.global_step == 2


def test_a_released_policy_goes_on(script, tmp_path, base):
    first = run(script, tmp_path / "first", base, max_steps=1)
    trained = {name: weight.clone() for name, weight in first.sol.policy.state_dict().items()}
    second = run(script, tmp_path / "second", base, max_steps=0, policy=str(tmp_path / "first" / "out"))
    assert all(torch.equal(weight, trained[name]) for name, weight in second.sol.policy.state_dict().items())
    with pytest.raises(ValueError, match=r"`page_size` is 4 in the policy .*, but 16 in the arguments"):
        run(script, tmp_path / "third", base, policy=str(tmp_path / "first" / "out"), page_size=16)


def test_a_policy_over_four_axes_reads_planes(script, tmp_path, base):
    axes = dict(bits=[5, 7, 16], neuron_keep=[0.5, 1.0], criterion="sketch", selection="layer", index_bits=3)
    settings = dict(axes, bits_backend="nested", axis_budgets={"neuron_keep": [0.6, 0.9]}, bits_budgets=[5, 8])
    trainer = run(script, tmp_path / "first", base, max_steps=1, **settings)
    logged = trainer.state.log_history[0]
    read = 5 * logged["sol/bits/5"] + 8 * logged["sol/bits/7"] + 16 * logged["sol/bits/16"]
    assert logged["sol/bits_ratio"] == pytest.approx(read / 16, abs=2e-3) and logged["sol/bits/7"] > 0
    out = tmp_path / "first" / "out"
    model = SOLForCausalLM.from_pretrained(out, base=AutoModelForCausalLM.from_pretrained(base))
    assert model.generation_config.bits_backend == "nested" and model.config.index_bits == 3
    scored = model.score(torch.arange(3, 40)[None], context_length=20, bits=8, neuron_keep=0.5)
    assert set(model.action_space.values[scored.actions[0]][:, 2].tolist()) <= {5.0, 7.0, 16.0}
    assert scored.realised[0, 2] <= 8
    with pytest.raises(ValueError, match="`neuron_keep` is .* in the policy .*, but .* in the arguments"):
        run(script, tmp_path / "second", base, policy=str(out), **{**axes, "neuron_keep": [0.7, 1.0]})


def test_an_adapter_on_a_released_policy(script, tmp_path, base):
    run(script, tmp_path / "first", base, max_steps=1)
    run(script, tmp_path / "second", base, policy=str(tmp_path / "first" / "out"), use_peft=True, learning_rate=1e-2)
    assert (tmp_path / "second" / "out" / "adapter_model.safetensors").exists()
    config = json.loads((tmp_path / "second" / "out" / "adapter_config.json").read_text())
    assert str(tmp_path) not in json.dumps(config)
    # a folder is no name that others could load, so the policy beneath the adapter is saved with it
    assert (tmp_path / "second" / "out" / "model.safetensors").exists()


def test_another_text_column(script, tmp_path, base):
    rows = [{"body": "Some text that is long enough for a block. " * 20} for _ in range(4)]
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(script, tmp_path, base, train_file=str(texts), text_column="body", max_steps=1)
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_texts_are_required(script):
    with pytest.raises(ValueError, match="`train_file` or from `dataset_name`"):
        script.ScriptArguments()


def test_a_typo_in_a_file_is_refused(script, tmp_path, base):
    with pytest.raises(ValueError, match="--gama"):
        run(script, tmp_path, base, gama=0.5)


def test_the_saved_policy_generates(script, tmp_path, base):
    run(script, tmp_path, base, max_steps=1)
    model = SOLForCausalLM.from_pretrained(tmp_path / "out", base=AutoModelForCausalLM.from_pretrained(base))
    prompt = torch.arange(10, 30)[None]
    assert model.generate(prompt, max_new_tokens=6, token_keep=0.75, bits=12).shape == (1, 26)
