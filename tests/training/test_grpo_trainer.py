# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Training a policy on tiny bases: which parameters change, and how a run is resumed."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel

from sol_hf import SOLPolicyModel, evaluate_budgets
from sol_hf.episodes.rollouts import Rollouts
from sol_hf.training.grpo_config import SOLGRPOConfig
from sol_hf.training.grpo_trainer import SOLGRPOTrainer, action_tokenizer
from support.bases import tiny_base
from support.trainers import CONTEXT, GROUP, blocks, changed, losses, model_on, trainer_of, weights


UNUSED = {"value_head.weight", "value_head.bias"}


@pytest.mark.parametrize(
    ("family", "prior", "head"),
    [("llama", False, "joint"), ("llama", True, "factored"), ("qwen3", True, "joint"), ("qwen3", False, "factored")],
)
def test_all_of_the_policy_is_trained_and_nothing_of_the_base(tmp_path, family, prior, head):
    model = model_on(family, action_head=head, budget_prior=prior)
    base, policy = weights(model.base), weights(model.policy)
    trainer = trainer_of(tmp_path, model)
    trainer.train()
    assert changed(policy, model.policy) == set(policy) - UNUSED
    assert changed(base, model.base) == set()
    assert all(parameter.grad is None for parameter in model.base.parameters())


def test_a_bfloat16_base(tmp_path):
    trainer = trainer_of(tmp_path, model_on(dtype=torch.bfloat16), max_steps=1)
    trainer.train()
    assert torch.isfinite(torch.tensor(trainer.state.log_history[0]["grad_norm"]))


def test_equal_rewards_give_zero_advantages(tmp_path):
    def cancel(rollouts: Rollouts) -> torch.Tensor:
        return -rollouts.label_logprobs

    trainer = trainer_of(tmp_path, reward_terms=[cancel], penalty_weights=[0.0, 0.0, 0.0])
    batch = [{"input_ids": row} for row in blocks(4)["input_ids"] for _ in range(GROUP)]
    assert trainer._generate_and_score_completions(batch)["advantages"].abs().max() == 0


def test_what_is_logged(tmp_path):
    trainer = trainer_of(tmp_path, max_steps=1)
    trainer.train()
    logged = trainer.state.log_history[0]
    assert {"sol/task_reward", "sol/penalty", "sol/net_keep", "sol/budget_error", "entropy"} <= set(logged)
    assert 0.2 <= logged["sol/token_keep"] <= 1 and logged["sol/penalty"] > 0
    assert logged["entropy"] == pytest.approx(torch.tensor(27.0).log().item(), abs=0.2)


def test_rollouts_do_not_depend_on_how_many_run_together(tmp_path):
    together, apart = trainer_of(tmp_path, rollout_batch_size=16), trainer_of(tmp_path, rollout_batch_size=4)
    tokens = torch.tensor(blocks(4)["input_ids"])
    one, other = together.roll_out(tokens, 0, 3), apart.roll_out(tokens, 0, 3)
    assert torch.equal(one.actions, other.actions)
    half = together.roll_out(tokens[2:], 2, 3)
    assert torch.equal(one.actions[2 * GROUP :], half.actions)
    assert not torch.equal(one.actions, together.roll_out(tokens, 0, 4).actions)


def test_the_loss_reads_the_actions_own_log_probabilities(tmp_path):
    trainer = trainer_of(tmp_path, num_iterations=2)
    batch = [{"input_ids": row} for row in blocks(4)["input_ids"] for _ in range(GROUP)]
    inputs = trainer._generate_and_score_completions(batch)
    logprobs, entropies = trainer._score_actions(trainer.model, inputs)
    torch.testing.assert_close(logprobs, inputs["old_per_token_logps"], atol=1e-5, rtol=0)
    assert entropies.min() > 1


@pytest.mark.parametrize("peft_config", [None, LoraConfig(target_modules=["q_proj", "v_proj"])])
def test_a_reference_policy(tmp_path, peft_config):
    trainer = trainer_of(tmp_path, beta=0.1, peft_config=peft_config, learning_rate=1e-2)
    trainer.train()
    history = [entry["kl"] for entry in trainer.state.log_history if "kl" in entry]
    assert history[0] == pytest.approx(0, abs=1e-6) and history[1] > 1e-6


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo", "cispo"])
def test_loss_types_of_trl(tmp_path, loss_type):
    trainer = trainer_of(tmp_path, loss_type=loss_type, max_steps=1, epsilon_high=0.3)
    trainer.train()
    assert trainer.state.log_history[0]["grad_norm"] > 0


@pytest.mark.parametrize(
    "options",
    [
        dict(return_kind="max"),
        dict(advantage_level="outcome"),
        dict(advantage_scale="zscore"),
        dict(kl_reward_weight=0.5),
    ],
)
def test_options_change_the_advantages(tmp_path, options):
    batch = [{"input_ids": row} for row in blocks(4)["input_ids"] for _ in range(GROUP)]
    plain = trainer_of(tmp_path)._generate_and_score_completions(batch)
    other = trainer_of(tmp_path, **options)._generate_and_score_completions(batch)
    assert torch.equal(plain["completion_ids"], other["completion_ids"])
    assert not torch.allclose(plain["advantages"], other["advantages"])
    assert torch.isfinite(other["advantages"]).all()


@pytest.mark.parametrize(
    ("batching", "stop"),
    [(dict(), 3), (dict(steps_per_generation=4), 3), (dict(num_iterations=2), 3)],
    ids=["between batches", "within a batch", "between iterations"],
)
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, batching, stop):
    arguments = dict(max_steps=6, save_strategy="steps", save_steps=stop, **batching)
    whole = trainer_of(tmp_path / "whole", model_on(), **arguments)
    whole.train()
    resumed = trainer_of(tmp_path / "resumed", model_on(), **arguments)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{stop}"))
    assert losses(resumed)[-3:] == losses(whole)[-3:]
    assert changed(weights(whole.sol.policy), resumed.sol.policy) == set()


def test_a_run_that_dies_while_saving_leaves_no_checkpoint(tmp_path, monkeypatch):
    trainer = trainer_of(tmp_path, max_steps=2, save_strategy="steps", save_steps=1)

    def die(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "_save_rng_state", die)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == []
    trainer_of(tmp_path, max_steps=1, save_strategy="steps", save_steps=1).train()
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["checkpoint-1"]


def test_old_checkpoints_go_and_the_rest_are_policies(tmp_path):
    trainer = trainer_of(tmp_path, max_steps=3, save_strategy="steps", save_steps=1, save_total_limit=2)
    trainer.train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]
    loaded = SOLPolicyModel.from_pretrained(tmp_path / "checkpoint-3")
    assert changed(weights(trainer.sol.policy), loaded) == set()
    assert json.loads((tmp_path / "checkpoint-3" / "training_args.json").read_text())["context_length"] == CONTEXT
    assert (tmp_path / "README.md").read_text().startswith("---")


def test_an_adapter_on_a_policy(tmp_path):
    model = model_on()
    released = weights(model.policy)
    trainer = trainer_of(
        tmp_path, model, peft_config=LoraConfig(target_modules=["q_proj", "v_proj"]), learning_rate=1e-2
    )
    trainer.train()
    trainer.save_model(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()
    batch = torch.tensor(blocks(2)["input_ids"])
    trained = trainer.roll_out(batch, 0, 0)
    fresh = model_on()
    fresh.policy.load_state_dict(released)
    untrained = trainer_of(tmp_path, fresh).roll_out(batch, 0, 0)
    fresh.policy = PeftModel.from_pretrained(fresh.policy, tmp_path / "adapter")
    again = trainer_of(tmp_path, model_on())
    again.sol = fresh
    again.model = fresh.policy
    assert torch.equal(again.roll_out(batch, 0, 0).action_logprobs, trained.action_logprobs)
    assert not torch.equal(untrained.action_logprobs, trained.action_logprobs)


def test_completions_are_named_by_their_actions():
    space = model_on().action_space
    tokenizer = action_tokenizer(space)
    assert tokenizer.decode([0, space.dense_id]) == f"{space.tag(0)} {space.tag(space.dense_id)}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(use_vllm=True), "use_vllm"),
        (dict(gamma=2.0), "`gamma` must lie in 0..1"),
        (dict(return_kind="mean"), "`return_kind` must be one of sum, max"),
        (dict(rollout_batch_size=6), "multiple of `num_generations`"),
        (dict(bits_budgets=[9.0, 6.0]), r"must be a range \[low, high\]"),
        (dict(context_length=0), "`context_length` must be at least 1"),
        (
            dict(context_length=5000),
            "longer than the base's 256 positions",
        ),
    ],
)
def test_wrong_arguments_are_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        trainer_of(tmp_path, **arguments)


def test_a_plain_model_is_refused(tmp_path):
    with pytest.raises(TypeError, match="must be a SOLForCausalLM"):
        SOLGRPOTrainer(tiny_base("llama"), SOLGRPOConfig(str(tmp_path)), train_dataset=blocks())


@pytest.mark.parametrize("horizon", ["generation", "episode"])
def test_a_hard_budget_holds_in_rollouts_and_is_what_the_loss_scores(tmp_path, horizon):
    options = dict(budget_mode="hard", budget_horizon=horizon, num_iterations=2, beta=0.1)
    trainer = trainer_of(tmp_path, bits_budgets=[6.0, 9.0], mlp_keep_budgets=[0.5, 0.6], **options)
    tokens = torch.tensor(blocks(4)["input_ids"])
    rollouts = trainer.roll_out(tokens, 0, 3)
    space = trainer.sol.action_space
    ratios, targets = space.ratios[rollouts.actions].double(), rollouts.targets.double()
    number = rollouts.controllable.cumsum(1)[..., None]
    sums = (ratios * rollouts.controllable[..., None]).cumsum(1)
    assert (ratios <= rollouts.bounds[:, :, 1] + 1e-4).all()
    is_kept = (sums[:, -1] <= targets * number[:, -1] + 1e-4).all()
    assert is_kept == (horizon == "episode")
    if horizon == "episode":
        assert rollouts.asked is None
        assert (sums <= targets[:, None] * number + (1 - targets)[:, None] + 1e-4).all()
    else:  # the rollouts of a block begin with one bank, those of other blocks with others
        asked = rollouts.asked.unflatten(0, (-1, GROUP))
        assert (asked == asked[:, :1]).all() and (rollouts.asked - rollouts.targets).abs().max() > 0.01
        torch.testing.assert_close(rollouts.scalars[:, 0, 2:5], rollouts.asked)

    batch = [{"input_ids": row} for row in blocks(4)["input_ids"] for _ in range(GROUP)]
    inputs = trainer._generate_and_score_completions(batch)
    logprobs, entropies = trainer._score_actions(trainer.model, inputs)
    counted = inputs["completion_mask"].bool()
    torch.testing.assert_close(logprobs[counted], inputs["old_per_token_logps"][counted], atol=1e-5, rtol=0)
    torch.testing.assert_close(logprobs[counted], inputs["ref_per_token_logps"][counted], atol=1e-5, rtol=0)
    assert entropies.isfinite().all() and (entropies >= 0).all()
    trainer.train()
    assert torch.isfinite(torch.tensor([entry["grad_norm"] for entry in trainer.state.log_history[:2]])).all()


def test_an_evaluation_in_training_is_under_the_budget_of_the_training(tmp_path):
    budgets, found = [[0.4, 0.5, 7]], {}
    for horizon in ("generation", "episode"):
        options = dict(budget_mode="hard", budget_horizon=horizon, eval_budgets=budgets, eval_blocks=4)
        trainer = trainer_of(tmp_path / horizon, eval_dataset=blocks(4), **options)
        found[horizon] = trainer.evaluate()["eval_loss"]
        wanted = evaluate_budgets(
            trainer.sol, torch.tensor(blocks(4)["input_ids"]), CONTEXT, budgets, hard=True, budget_horizon=horizon
        )
        assert found[horizon] == pytest.approx(sum(wanted[0].losses) / 4, abs=1e-5)


@pytest.mark.parametrize("options", [dict(budget_mode="firm"), dict(budget_horizon="forever")])
def test_a_mode_and_a_horizon_that_there_are_not_are_refused(tmp_path, options):
    (name,) = options
    with pytest.raises(ValueError, match=f"`{name}` must be one of"):
        SOLGRPOConfig(output_dir=str(tmp_path), **options)
