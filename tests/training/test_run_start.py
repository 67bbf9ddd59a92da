# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What is wrong with a run is said before its first update."""

import shutil
from collections import namedtuple

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

from sol_hf import SOLForCausalLM
from support.bases import tiny_base
from support.cases import control
from support.trainers import CONTEXT, STEPS, blocks, model_on, trainer_of


class NoUpdate(TrainerCallback):
    def on_step_begin(self, *args, **kwargs):
        raise AssertionError("an update has begun")


def assert_refused_before_training(trainer, error: type[Exception], message: str) -> None:
    trainer.add_callback(NoUpdate())
    with pytest.raises(error, match=message):
        trainer.train()


class TestSaving:
    def test_a_generation_config_that_transformers_does_not_save(self, tmp_path):
        base = tiny_base("llama")
        base.generation_config.temperature, base.generation_config.do_sample = 0.9, False
        model = control(base)
        model.policy.float()
        trainer = trainer_of(tmp_path, model, save_strategy="steps", save_steps=1, max_steps=1)
        trainer.train()
        trainer.save_model()
        loaded = SOLForCausalLM.from_pretrained(tmp_path / "checkpoint-1", base=tiny_base("llama"))
        assert loaded.generation_config.temperature == 0.9 and loaded.generation_config.do_sample is False

    def test_a_config_that_cannot_be_written(self, tmp_path):
        model = model_on()
        model.generation_config.made_of = object()
        assert_refused_before_training(
            trainer_of(tmp_path, model), ValueError, "cannot be saved in .*not JSON serializable"
        )

    def test_a_folder_that_cannot_be_written_to(self, tmp_path, monkeypatch):
        trainer = trainer_of(tmp_path)

        def read_only(*args, **kwargs):
            raise OSError(30, "Read-only file system")

        monkeypatch.setattr(trainer, "_save", read_only)
        assert_refused_before_training(
            trainer, OSError, "cannot be saved in .*Read-only file system.*another `output_dir`"
        )

    def test_a_disk_without_room_for_a_checkpoint(self, tmp_path, monkeypatch):
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))
        assert_refused_before_training(
            trainer_of(tmp_path), OSError, "A checkpoint needs about .* MB, but the disk of .* has 0 MB"
        )

    def test_a_run_that_begins_leaves_no_trial(self, tmp_path):
        trainer = trainer_of(tmp_path, max_steps=1)
        trainer.train()
        assert not list(tmp_path.glob("**/*.safetensors"))


class TestData:
    @pytest.mark.parametrize("stream", [False, True])
    def test_less_than_a_batch(self, tmp_path, stream):
        few = blocks(3).to_iterable_dataset() if stream else blocks(3)
        with pytest.raises(ValueError, match="have 3 blocks, but a batch of rollouts needs 4: .*Give more text"):
            trainer_of(tmp_path, train_dataset=few)

    def test_exactly_a_batch(self, tmp_path):
        trainer = trainer_of(tmp_path, train_dataset=blocks(4), max_steps=-1, num_train_epochs=2)
        trainer.train()
        assert trainer.state.global_step == 2

    def test_too_little_to_evaluate_on(self, tmp_path):
        with pytest.raises(ValueError, match=r"to evaluate on \(one\) have less than the 2 blocks"):
            trainer_of(tmp_path, eval_dataset={"other": blocks(2), "one": blocks(1)})

    def test_texts_without_a_tokenizer(self, tmp_path):
        with pytest.raises(ValueError, match="needs the tokenizer of the base as `processing_class`"):
            trainer_of(tmp_path, train_dataset=Dataset.from_dict({"text": ["a text"]}))

    def test_the_tokenizer_of_the_base_is_found(self, tmp_path, tokenizer):
        model, texts = model_on(), Dataset.from_dict({"text": ["w1 w2 w3 w4"] * 99})
        tokenizer.save_pretrained(tmp_path / "base")
        model.base.config._name_or_path = str(tmp_path / "base")
        found = trainer_of(tmp_path, model, train_dataset=texts)
        given = trainer_of(tmp_path, train_dataset=texts, processing_class=tokenizer)
        assert found.train_dataset["input_ids"] == given.train_dataset["input_ids"]

    def test_texts_in_another_column(self, tmp_path, tokenizer):
        texts = Dataset.from_dict({"body": ["w1 w2 w3 w4"] * 99})
        with pytest.raises(ValueError, match="no column 'text'; the columns are body: set `text_column`"):
            trainer_of(tmp_path, train_dataset=texts, processing_class=tokenizer)
        trainer = trainer_of(tmp_path, train_dataset=texts, processing_class=tokenizer, text_column="body")
        assert len(trainer.train_dataset[0]["input_ids"]) == CONTEXT + STEPS + 1

    @pytest.mark.parametrize("name", ["save_strategy", "eval_strategy", "logging_strategy"])
    def test_a_stream_has_no_epochs(self, tmp_path, name):
        with pytest.raises(ValueError, match=f"no epochs for `{name}`"):
            trainer_of(
                tmp_path,
                train_dataset=blocks().to_iterable_dataset(),
                eval_dataset=blocks(2),
                **{"save_strategy": "steps", name: "epoch"},
            )

    def test_no_controllable_step(self, tmp_path):
        short = Dataset.from_dict({"input_ids": [[3] * (1 + STEPS + 1)] * 8})
        with pytest.raises(ValueError, match="No step of an episode can be controlled: 7 tokens"):
            trainer_of(tmp_path, context_length=1, train_dataset=short)


class TestArguments:
    def test_a_best_metric_that_does_not_exist(self, tmp_path):
        settings = dict(eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1)
        with pytest.raises(ValueError, match="`metric_for_best_model` is 'eval_reward', but an evaluation has"):
            trainer_of(tmp_path, eval_dataset=blocks(2), metric_for_best_model="eval_reward", **settings)
        with pytest.raises(ValueError, match="'loss', but an evaluation has a_budget_error"):
            trainer_of(tmp_path, eval_dataset={"a": blocks(2)}, load_best_model_at_end=True, **settings)

    def test_a_policy_that_cannot_be_trained(self, tmp_path):
        model = model_on()
        model.policy.requires_grad_(False)
        with pytest.raises(ValueError, match="all of its weights are frozen"):
            trainer_of(tmp_path, model)

    @pytest.mark.parametrize(
        ("reward", "message"),
        [
            (lambda rollouts: rollouts.label_logprobs.sum(dim=1), "must give a tensor"),
            (lambda rollouts: 1.0, "gave float"),
            (lambda rollouts: rollouts.label_logprobs * float("nan"), "not finite"),
        ],
        ids=["of rollouts", "a number", "NaN"],
    )
    def test_a_reward_that_is_none(self, tmp_path, reward, message):
        with pytest.raises(ValueError, match=message):
            trainer_of(tmp_path, reward_terms=[reward]).train()


@pytest.fixture
def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{n}": n for n in range(99)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w98", unk_token="w0")


@pytest.mark.parametrize(
    "criterion", ["mine", *(pytest.param(name, marks=pytest.mark.slow) for name in ("quest", "relevancy", "recency"))]
)
def test_rollouts_and_their_metrics_use_the_criterion_of_the_policy(tmp_path, criterion):
    from support.extra_criterion import LongKeys, registered

    def noted(rollouts):
        seen.append(rollouts)
        return torch.zeros_like(rollouts.label_logprobs)

    seen = []
    with registered("mine", LongKeys()):
        model = model_on(dtype=torch.float64, criterion=criterion)
        trainer = trainer_of(tmp_path, model, reward_terms=[noted], max_steps=1)
        trainer.train()
        found = seen[0]
        budget = dict(zip(model.action_space.axis_names, [0.5, 0.5, 8], strict=True))
        actions = found.actions.T
        rows = next(iter(trainer.get_train_dataloader()))
        from sol_hf import ScheduleController

        scored = model.score(
            torch.tensor([row["input_ids"] for row in rows]),
            context_length=CONTEXT,
            controller=ScheduleController(actions),
            kv_refresh=False,
            budget_mode="soft",
            **budget,
        )
    torch.testing.assert_close(found.label_logprobs, scored.logprobs.to(found.label_logprobs.dtype))
