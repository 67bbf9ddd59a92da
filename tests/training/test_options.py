# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Arguments of TRL and transformers: each does something, or the user is told that it does nothing."""

import functools
import logging
from dataclasses import fields
from typing import Any

import pytest
import torch
from trl import GRPOConfig

from sol_hf.hub.recipe import default_of
from sol_hf.training.grpo_config import SOLGRPOConfig
from sol_hf.training.option_kinds import EFFECTIVE, HARMLESS, REFUSED
from support.trainers import GROUP, blocks, changed, model_on, trainer_of, weights


INHERITED = {field.name: field for field in fields(GRPOConfig)}
ALL = {field.name: field for field in fields(SOLGRPOConfig)}


def other(field) -> Any:
    """A value that is not the default of an argument."""
    value = default_of(ALL[field.name])
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int | float) else "something else"


def configured(tmp_path, **arguments) -> SOLGRPOConfig:
    return SOLGRPOConfig(str(tmp_path), use_cpu=True, report_to=[], **arguments)


@pytest.mark.parametrize("name", INHERITED)
def test_it_is_known_what_an_argument_does(name):
    assert sum(name in kind for kind in (EFFECTIVE, REFUSED, HARMLESS)) == 1, (
        f"{name} is new: put it into one of the tables of option_kinds.py, and prove there that it is effective"
    )


@pytest.mark.parametrize("name", sorted(set(REFUSED) & set(ALL)))
def test_an_argument_without_meaning_is_refused_by_name(tmp_path, name):
    with pytest.raises(ValueError, match=rf"`{name}`"):
        configured(tmp_path, **{name: other(ALL[name])})


@pytest.mark.parametrize("name", sorted(set(HARMLESS) & set(ALL)))
def test_a_harmless_argument_is_warned_about(tmp_path, name, caplog):
    with caplog.at_level(logging.WARNING, logger="sol_hf"):
        configured(tmp_path, **{name: other(ALL[name])})
    assert f"`{name}` has no effect" in caplog.text


@pytest.mark.parametrize(
    "arguments",
    [
        dict(sapo_temperature_neg=1.5),
        dict(vespo_k_pos=3.0),
        dict(loss_type="sapo", epsilon=0.3),
        dict(loss_type="cispo", delta=2.0),
        dict(ref_model_sync_steps=3),
        dict(use_bias_correction_kl=False),
        dict(entropy_target=0.4),
        dict(entropy_coef_max=0.4),
        dict(hub_strategy="end"),
        dict(advantage_level="outcome", gamma=0.5),
    ],
    ids=str,
)
def test_an_argument_that_needs_another_is_warned_about(tmp_path, arguments, caplog):
    with caplog.at_level(logging.WARNING, logger="sol_hf"):
        configured(tmp_path, **arguments)
    assert f"`{list(arguments)[-1]}` has no effect: it needs" in caplog.text


def test_the_defaults_and_arguments_with_an_effect_are_silent(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="sol_hf"):
        configured(tmp_path)
        configured(tmp_path, loss_type="sapo", sapo_temperature_neg=1.5, beta=0.1, sync_ref_model=True, gamma=0.5)
    assert caplog.text == ""


EFFECTS: dict[str, dict] = {
    "learning_rate": dict(learning_rate=3e-3),
    "weight_decay": dict(weight_decay=0.5),
    "adam_beta1": dict(adam_beta1=0.5),
    "max_grad_norm": dict(max_grad_norm=1e-3),
    "optim": dict(optim="sgd"),
    "lr_scheduler_type": dict(lr_scheduler_type="constant"),
    "warmup_steps": dict(warmup_steps=2),
    "seed": dict(seed=7),
    "shuffle_dataset": dict(shuffle_dataset=False),
    "bf16": dict(bf16=True),
    "num_generations": dict(num_generations=2),
    "temperature": dict(temperature=0.7),
    "entropy_coef": dict(entropy_coef=0.5),
    "use_adaptive_entropy": dict(use_adaptive_entropy=True, entropy_coef_delta=0.5, entropy_target=5.0),
    "loss_type": dict(loss_type="luspo"),
    "sapo": dict(loss_type="sapo", sapo_temperature_pos=2.0, num_iterations=2),
    "importance_sampling_level": dict(importance_sampling_level="sequence"),
    "top_entropy_quantile": dict(top_entropy_quantile=0.3),
    "steps_per_generation": dict(steps_per_generation=4),
    "generation_batch_size": dict(generation_batch_size=32),
    "num_iterations": dict(num_iterations=2),
    "beta": dict(beta=5.0),
    "context_length": dict(context_length=19, shorter=1),
    "gamma": dict(gamma=0.1),
    "penalty_weights": dict(penalty_weights=[1.0, 1.0, 1.0]),
    "bits_budgets": dict(bits_budgets=[5.0, 6.0]),
    "kl_reward_weight": dict(kl_reward_weight=0.5),
}


TOGETHER = {"sapo": dict(num_iterations=2)}
"""What an effect is compared with, if not with the defaults: on the first update of a batch all ratios are 1."""


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The weights without an effect, by its name."""
    return functools.cache(lambda name: run(tmp_path_factory.mktemp("plain"), **TOGETHER.get(name, {})))


def run(folder, shorter: int = 0, **arguments) -> dict[str, torch.Tensor]:
    texts = blocks(16)
    if shorter:
        texts = texts.map(lambda row: {"input_ids": row["input_ids"][shorter:]})
    settings = dict(max_steps=2, gradient_accumulation_steps=1, logging_steps=2, learning_rate=1e-2)
    trainer = trainer_of(folder, model_on(), train_dataset=texts, **{**settings, **arguments})
    trainer.train()
    return weights(trainer.sol.policy)


def assert_other_weights(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Asserts that weights differ by more than the rounding of updates."""
    assert max(float((found[key] - weight).abs().max()) for key, weight in expected.items()) > 1e-4


@pytest.mark.parametrize("name", list(EFFECTS)[:8])
def test_an_effective_argument_changes_the_weights(tmp_path, plain, name):
    assert_other_weights(run(tmp_path, **EFFECTS[name]), plain(name if name in TOGETHER else None))


@pytest.mark.slow
@pytest.mark.parametrize("name", list(EFFECTS)[8:])
def test_a_further_effective_argument_changes_the_weights(tmp_path, plain, name):
    assert_other_weights(run(tmp_path, **EFFECTS[name]), plain(name if name in TOGETHER else None))


def test_the_arguments_are_those_of_the_user_afterwards(tmp_path):
    trainer = trainer_of(tmp_path, beta=0.1, sync_ref_model=True, ref_model_sync_steps=1)
    assert trainer.args.beta == trainer.beta == 0.1 and trainer.args.sync_ref_model
    assert trainer.args.max_completion_length == default_of(ALL["max_completion_length"])
    assert trainer.max_completion_length == trainer.episode_length


def test_the_reference_follows_the_policy(tmp_path):
    trainer = trainer_of(
        tmp_path, beta=0.1, sync_ref_model=True, ref_model_sync_steps=1, ref_model_mixup_alpha=1.0, max_steps=1
    )
    before = weights(trainer.ref_model)
    trainer.train()
    assert changed(before, trainer.ref_model)
    assert changed(weights(trainer.sol.policy), trainer.ref_model) == set()


def test_the_reference_of_a_trained_adapter_is_that_adapter(tmp_path):
    from peft import LoraConfig, get_peft_model

    model = model_on()
    config = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model.policy = get_peft_model(model.policy, config)
    trainer = trainer_of(tmp_path, model, beta=0.1, num_iterations=2)
    batch = [{"input_ids": row} for row in blocks(4)["input_ids"] for _ in range(GROUP)]
    inputs = trainer._generate_and_score_completions(batch)
    torch.testing.assert_close(inputs["ref_per_token_logps"], inputs["old_per_token_logps"], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("metric", "wanted"),
    [("eval_gain", True), ("gain/0.5-0.7-8", True), ("eval_perplexity", False), ("budget_error", False)],
)
def test_the_direction_of_a_metric_is_known(tmp_path, metric, wanted):
    assert configured(tmp_path, metric_for_best_model=metric).greater_is_better is wanted
    assert configured(tmp_path, metric_for_best_model=metric, greater_is_better=not wanted).greater_is_better != wanted


def test_fp16_on_a_cpu_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`fp16` has no effect on a CPU"):
        configured(tmp_path, fp16=True)


def test_rollouts_of_a_block_are_not_torn_apart(tmp_path):
    with pytest.raises(ValueError, match="split_batches"):
        configured(tmp_path, accelerator_config={"split_batches": True})
