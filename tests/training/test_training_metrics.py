# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Metrics of a training run: rollouts, evaluations, the best checkpoint, a progress bar, TensorBoard."""

import math
import re

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import PrinterCallback, ProgressCallback

from sol_hf import BudgetError
from sol_hf.evaluation.policy_evaluation import budgets_within, evaluate_budgets
from sol_hf.training.grpo_config import SOLGRPOConfig
from sol_hf.training.grpo_trainer import SOLGRPOTrainer
from sol_hf.training.metrics import BudgetProgress, evaluation_table, rollout_figures
from sol_hf.training.trend import TRENDS, WINDOW, trends
from support.bases import tiny_base
from support.cases import LEVELS, SETTINGS, control


CONTEXT, STEPS = 20, SETTINGS["episode_length"]
WANTED = [[0.5, 0.5, 8], [0.4, 1.0, 12]]


def blocks(number: int = 32, seed: int = 0) -> Dataset:
    generator = torch.Generator().manual_seed(seed)
    return Dataset.from_dict(
        {"input_ids": torch.randint(1, 99, (number, CONTEXT + STEPS + 1), generator=generator).tolist()}
    )


def trainer_of(
    folder, eval_dataset=None, train_dataset=None, peft_config=None, budget_prior=True, reward_terms=(), **arguments
) -> SOLGRPOTrainer:
    settings = dict(
        context_length=CONTEXT,
        num_generations=4,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=1,
        rollout_batch_size=8,
        max_steps=4,
        learning_rate=3e-2,
        logging_steps=1,
        save_strategy="no",
        eval_blocks=6,
        eval_budgets=WANTED,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    model = control(tiny_base("llama"), budget_prior=budget_prior)
    model.policy.float()
    return SOLGRPOTrainer(
        model,
        SOLGRPOConfig(output_dir=str(folder), **{**settings, **arguments}),
        train_dataset=train_dataset if train_dataset is not None else blocks(),
        eval_dataset=eval_dataset,
        peft_config=peft_config,
        reward_terms=reward_terms,
    )


def evaluations_of(trainer) -> list[dict]:
    return [entry for entry in trainer.state.log_history if "eval_gain" in entry]


def test_an_evaluation_as_a_table_for_a_terminal():
    metrics = {"eval_gain": 0.01, "eval_gain_error": 0.002, "eval_loss": 3.0}
    for budget, gain in {"0.5-0.7-8-0.65": 0.04, "0.2-0.4-5-1": -0.02}.items():
        found = dict(gain=gain, perplexity=21.5, fixed_perplexity=22.25, budget_error=0.0125)
        metrics |= {f"eval_{name}/{budget}": value for name, value in found.items()}
    table = evaluation_table(metrics, ("token_keep", "mlp_keep", "bits", "neuron_keep"))
    assert table.splitlines() == [
        "Gain over the fixed schedule at equal cost: +0.0100 ± 0.0020 nats a token",
        "Budgets are token_keep/mlp_keep/bits/neuron_keep:",
        "budget             gain  perplexity   fixed  off budget",
        "0.5/0.7/8/0.65  +0.0400      21.500  22.250      0.0125",
        "0.2/0.4/5/1     -0.0200      21.500  22.250      0.0125",
    ]


def test_one_block_of_a_document_is_evaluated(tmp_path):
    rows = blocks(8).add_column("document", [0, 0, 0, 1, 1, 2, 3, 3])
    trainer = trainer_of(tmp_path, eval_dataset=rows, eval_per_document=1, eval_blocks=3)
    one_each, all_of = trainer.evaluate(), trainer_of(tmp_path, eval_dataset=rows.select([0, 3, 5])).evaluate()
    assert one_each["eval_loss"] == all_of["eval_loss"]
    with pytest.raises(ValueError, match="`eval_per_document` must be at least 1, got 0"):
        trainer_of(tmp_path, eval_per_document=0)


class TestTrend:
    def test_the_log_has_running_means(self, tmp_path):
        trainer = trainer_of(tmp_path, max_steps=4)
        trainer.train()
        entries = [entry for entry in trainer.state.log_history if "sol/task_reward" in entry]
        assert len(entries) == 4
        for name, metric in TRENDS.items():
            values = [entry[metric] for entry in entries]
            means = [sum(values[: end + 1]) / (end + 1) for end in range(4)]
            assert [entry[name] for entry in entries] == pytest.approx(means)

    def test_old_entries_do_not_count(self):
        history = [{"sol/net_keep": 9.0}] + [{"sol/net_keep": 1.0}, {"eval_gain": 0.1}] * (WINDOW - 1)
        assert trends({"sol/net_keep": [1.0, 3.0]}, history) == {"trend/net_keep": (WINDOW + 1) / WINDOW}
        assert trends({}, history) == {}


class TestEvaluate:
    def test_the_metrics_are_those_of_evaluate_budgets(self, tmp_path):
        trainer, dataset = trainer_of(tmp_path, blocks(9, seed=1)), blocks(9, seed=1)
        metrics = trainer.evaluate()
        tokens = torch.tensor(dataset["input_ids"][:6])
        expected = evaluate_budgets(trainer.sol, tokens, CONTEXT, WANTED, batch_size=4)
        assert metrics["eval_gain"] == pytest.approx(sum(x.gain for x in expected) / 2)
        assert metrics["eval_budget_error"] == pytest.approx(sum(x.budget_error for x in expected) / 2)
        for tag, found in zip(("0.5-0.5-8", "0.4-1-12"), expected, strict=True):
            for name in ("perplexity", "fixed_perplexity", "gain", "budget_error"):
                assert metrics[f"eval_{name}/{tag}"] == getattr(found, name)
        assert metrics["eval_loss"] == pytest.approx(math.log(metrics["eval_perplexity"]))
        ratio = metrics["eval_fixed_perplexity"] / metrics["eval_perplexity"]
        assert metrics["eval_gain"] == pytest.approx(math.log(ratio))
        gains = torch.tensor([x.gains for x in expected]).mean(dim=0)
        assert metrics["eval_gain_error"] == pytest.approx((gains.std() / 6**0.5).item(), rel=1e-4)
        assert metrics["eval_samples_per_second"] > 0
        assert trainer.state.log_history[-1]["eval_gain"] == metrics["eval_gain"]

    def test_the_default_budgets_lie_within_the_action_space(self, tmp_path):
        trainer = trainer_of(tmp_path, blocks(4), eval_budgets=None)
        metrics = trainer.evaluate()
        tags = {name.split("/")[1] for name in metrics if name.startswith("eval_gain/")}
        assert tags == {"-".join(f"{v:g}" for v in b) for b in budgets_within(trainer.sol.action_space)}

    def test_it_leaves_training_alone(self, tmp_path):
        plain = trainer_of(tmp_path)
        plain.train()
        evaluated = trainer_of(tmp_path, blocks(8, seed=1), eval_strategy="steps", eval_steps=1, logging_steps=2)
        evaluated.train()
        one, other = plain.sol.policy.state_dict(), evaluated.sol.policy.state_dict()
        assert all(torch.equal(weight, other[name]) for name, weight in one.items())
        found = evaluations_of(evaluated)
        assert [entry["step"] for entry in found] == [1, 2, 3, 4]
        assert len({entry["eval_loss"] for entry in found}) > 1
        assert not any("sol/penalty" in name for entry in found for name in entry)
        trained = [entry for entry in evaluated.state.log_history if "sol/penalty" in entry]
        assert [entry["step"] for entry in trained] == [2, 4]
        rewards = [entry["sol/task_reward"] for entry in plain.state.log_history if "sol/task_reward" in entry]
        assert trained[0]["sol/task_reward"] == pytest.approx(sum(rewards[:2]) / 2)

    @pytest.mark.parametrize("peft_config", [None, LoraConfig(target_modules=["q_proj", "v_proj"])])
    def test_the_best_policy_is_loaded_at_the_end(self, tmp_path, peft_config):
        trainer = trainer_of(
            tmp_path,
            blocks(8, seed=1),
            peft_config=peft_config,
            budget_prior=peft_config is None,  # whose untrained heads are zero: no gradient for an adapter
            eval_strategy="steps",
            eval_steps=1,
            save_strategy="steps",
            save_steps=1,
            save_total_limit=1,
            load_best_model_at_end=True,
            metric_for_best_model="eval_gain",
            greater_is_better=True,
        )
        trainer.train()
        gains = {entry["step"]: entry["eval_gain"] for entry in evaluations_of(trainer)}
        best = max(gains, key=gains.get)
        assert best < 4
        assert trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best}")
        assert trainer.state.best_metric == gains[best]
        assert trainer.evaluate()["eval_gain"] == gains[best]
        if peft_config is None:
            stored = load_file(tmp_path / f"checkpoint-{best}" / "model.safetensors")
            assert all(torch.equal(stored[name], weight) for name, weight in trainer.sol.policy.state_dict().items())

    def test_several_datasets(self, tmp_path):
        trainer = trainer_of(
            tmp_path,
            {"one": blocks(6, seed=1), "other": blocks(6, seed=2)},
            eval_strategy="steps",
            eval_steps=1,
            max_steps=1,
            metric_for_best_model="eval_one_gain",
            greater_is_better=True,
        )
        trainer.train()
        logged = [name for entry in trainer.state.log_history for name in entry if name.endswith("_gain")]
        assert logged == ["eval_one_gain", "eval_other_gain"]
        assert trainer.state.best_metric == trainer.evaluate({"x": blocks(6, seed=1)})["eval_x_gain"]

    def test_streams(self, tmp_path):
        whole = trainer_of(tmp_path, blocks(9, seed=1))
        streamed = trainer_of(
            tmp_path, blocks(9, seed=1).to_iterable_dataset(), train_dataset=blocks().to_iterable_dataset()
        )
        assert streamed.evaluate()["eval_loss"] == whole.evaluate()["eval_loss"]
        streamed.train()
        assert streamed.state.global_step == 4
        assert streamed.evaluate()["eval_loss"] != whole.evaluate()["eval_loss"]

    def test_without_a_dataset(self, tmp_path):
        with pytest.raises(ValueError, match="nothing to evaluate on"):
            trainer_of(tmp_path).evaluate()

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            (dict(eval_budgets=[[0.1, 0.5, 8]]), BudgetError, "below the smallest level"),
            (dict(eval_budgets=[[0.5, 0.5]]), ValueError, "one number per axis"),
            (dict(eval_budgets=[]), ValueError, "no budget"),
            (dict(eval_blocks=1), ValueError, "`eval_blocks` must be at least 2"),
        ],
    )
    def test_wrong_arguments_are_refused_before_training(self, tmp_path, arguments, error, message):
        with pytest.raises(error, match=message):
            trainer_of(tmp_path, **arguments)


class TestLogs:
    def test_the_histogram_is_that_of_the_actions(self, tmp_path):
        trainer = trainer_of(tmp_path)
        rollouts = trainer.roll_out(torch.tensor(blocks(4)["input_ids"]), 0, 0)
        nothing = torch.zeros(len(rollouts.actions))
        figures = rollout_figures(rollouts, rollouts.label_logprobs, nothing, trainer.sol.action_space)
        taken = trainer.sol.action_space.values[rollouts.actions].flatten(0, 1)
        for number, axis in enumerate(LEVELS):
            shares = [figures[f"sol/{axis}/{level:g}"].item() for level in LEVELS[axis]]
            assert shares == pytest.approx(
                [(taken[:, number] == level).float().mean().item() for level in LEVELS[axis]]
            )
            assert sum(shares) == pytest.approx(1) and max(shares) < 1

    def test_uncontrollable_steps_are_left_out(self, tmp_path):
        trainer = trainer_of(tmp_path, context_length=5, train_dataset=short_blocks())
        rollouts = trainer.roll_out(torch.tensor(short_blocks()["input_ids"][:4]), 0, 0)
        assert 0 < rollouts.controllable.float().mean() < 1
        nothing = torch.zeros(len(rollouts.actions))
        figures = rollout_figures(rollouts, rollouts.label_logprobs, nothing, trainer.sol.action_space)
        taken = trainer.sol.action_space.values[rollouts.actions][rollouts.controllable]
        assert figures["sol/bits/16"].item() == pytest.approx((taken[:, 2] == 16).float().mean().item())

    def test_every_figure_is_logged(self, tmp_path):
        trainer = trainer_of(tmp_path, max_steps=1)
        trainer.train()
        logged = trainer.state.log_history[0]
        assert {"entropy", "clip_ratio/region_mean", "sol/net_keep", "sol/budget_error"} <= set(logged)
        assert {f"sol/{axis}/{level:g}" for axis in LEVELS for level in LEVELS[axis]} <= set(logged)
        mean = sum(level * logged[f"sol/token_keep/{level:g}"] for level in LEVELS["token_keep"])
        assert mean == pytest.approx(logged["sol/token_keep"], abs=1e-5)

    def test_the_reward_is_the_one_that_was_asked_for(self, tmp_path):
        def bonus(rollouts):
            return torch.full_like(rollouts.label_logprobs, 3.0)

        mixed = trainer_of(tmp_path, max_steps=1, kl_reward_weight=0.5, reward_terms=[bonus])
        mixed.train()
        logged = mixed.state.log_history[0]
        rollouts = trainer_of(tmp_path, kl_reward_weight=0.5).roll_out(first_blocks(mixed), 0, 0)
        rewards = 0.5 * rollouts.label_logprobs - 0.5 * rollouts.divergence + 3
        assert logged["sol/task_reward"] == pytest.approx(rewards.mean().item(), abs=1e-4)
        assert logged["sol/label_logprob"] == pytest.approx(rollouts.label_logprobs.mean().item(), abs=1e-4)
        assert logged["sol/task_reward"] != pytest.approx(logged["sol/label_logprob"], abs=0.1)
        assert logged["reward"] == pytest.approx(STEPS * rewards.mean().item() - logged["sol/penalty"], abs=1e-3)
        assert logged["reward_std"] > 0 and logged["frac_reward_zero_std"] == 0

    def test_groups_without_a_difference_are_counted(self, tmp_path):
        def cancel(rollouts):
            return -rollouts.label_logprobs

        trainer = trainer_of(tmp_path, max_steps=1, reward_terms=[cancel], penalty_weights=[0.0, 0.0, 0.0])
        trainer.train()
        logged = trainer.state.log_history[0]
        assert logged["reward"] == logged["reward_std"] == logged["sol/task_reward"] == 0
        assert logged["frac_reward_zero_std"] == 1

    def test_tensorboard_gets_them(self, tmp_path, monkeypatch):
        monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
        trainer = trainer_of(
            tmp_path, blocks(6), report_to=["tensorboard"], max_steps=2, eval_strategy="steps", eval_steps=2
        )
        trainer.train()
        events = EventAccumulator(str(tmp_path / "logs"))
        events.Reload()
        tags = events.Tags()["scalars"]
        assert {"train/sol/token_keep", "train/sol/token_keep/0.2", "train/sol/bits/16", "train/entropy"} <= set(tags)
        assert {"eval/gain", "eval/perplexity", "eval/gain/0.5-0.5-8"} <= set(tags)
        shown = events.Scalars("eval/gain/0.5-0.5-8")
        assert [event.step for event in shown] == [2]
        assert shown[0].value == pytest.approx(evaluations_of(trainer)[0]["eval_gain/0.5-0.5-8"], abs=1e-6)


class TestProgress:
    def test_the_bar_shows_reward_cost_and_error(self, tmp_path, capfd):
        trainer = trainer_of(tmp_path, blocks(6), disable_tqdm=False, eval_strategy="steps", eval_steps=4)
        trainer.train()
        shown = capfd.readouterr()
        last = trainer.state.log_history[-3]
        bar = f"task_reward={last['sol/task_reward']:.3f}, net_keep={last['sol/net_keep']:.3f}"
        assert bar in shown.err and f"budget_error={last['sol/budget_error']:.3f}" in shown.err
        assert "'sol/net_keep'" in shown.out and "'eval_gain'" in shown.out
        assert not re.search(r"sol/bits/\d|eval_gain/", shown.out)

    def test_it_takes_the_place_of_the_ordinary_bar(self, tmp_path):
        callbacks = trainer_of(tmp_path, disable_tqdm=False).callback_handler.callbacks
        assert [type(x) for x in callbacks if isinstance(x, ProgressCallback)] == [BudgetProgress]
        without = trainer_of(tmp_path, disable_tqdm=True).callback_handler.callbacks
        assert not any(isinstance(x, ProgressCallback) for x in without)
        assert any(isinstance(x, PrinterCallback) for x in without)


def first_blocks(trainer) -> torch.Tensor:
    """The blocks of the first batch of rollouts."""
    rows = next(iter(trainer.get_train_dataloader()))
    return torch.tensor([row["input_ids"] for row in rows[:: trainer.num_generations]])


def short_blocks() -> Dataset:
    tokens = torch.randint(1, 99, (32, 5 + STEPS + 1), generator=torch.Generator().manual_seed(0))
    return Dataset.from_dict({"input_ids": tokens.tolist()})
