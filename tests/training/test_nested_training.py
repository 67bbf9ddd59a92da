# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Training over four axes whose steps read planes of the weights, as `generate` then does."""

import json
import logging

import pytest
import torch

from sol_hf import SOLForCausalLM, UnsupportedAxisError
from sol_hf.training.warmup import CounterfactualWarmup, CounterfactualWarmupConfig
from support.bases import tiny_base
from support.cases import control
from support.new_axes import READ, nested_model
from support.trainers import CONTEXT, changed, losses, trainer_of, weights


def test_a_policy_is_trained_on_the_steps_that_it_will_make(tmp_path):
    model = nested_model()
    before = weights(model.policy)
    trainer = trainer_of(tmp_path, model, axis_budgets={"neuron_keep": [0.5, 0.9]}, kl_reward_weight=1.0)
    trainer.train()
    assert changed(before, model.policy) and losses(trainer)
    logged = trainer.state.log_history[0]
    shares = {level: logged[f"sol/bits/{level}"] for level in READ}
    assert sum(shares.values()) == pytest.approx(1, abs=1e-4) and shares[7] > 0
    read = sum(READ[level] * share for level, share in shares.items()) / 16
    assert logged["sol/bits_ratio"] == pytest.approx(read, abs=2e-3)
    trainer.save_model(str(tmp_path / "policy"))
    again = SOLForCausalLM.from_pretrained(tmp_path / "policy", base=model.base)
    assert again.generation_config.bits_backend == "nested"


def test_the_rewards_are_of_steps_that_read_planes(tmp_path):
    model = nested_model()
    trainer = trainer_of(tmp_path, model)
    blocks, found = torch.randint(1, 99, (2, CONTEXT + 7), generator=torch.Generator().manual_seed(0)), {}
    for bits_backend in ("nested", "fake"):
        model.generation_config.bits_backend = bits_backend
        found[bits_backend] = trainer.roll_out(blocks, 0, 0)
    assert torch.equal(found["nested"].actions[:, 0], found["fake"].actions[:, 0])
    assert not torch.equal(found["nested"].label_logprobs[:, 0], found["fake"].label_logprobs[:, 0])


@pytest.mark.slow
def test_a_checkpoint_says_how_its_steps_were_computed(tmp_path, caplog):
    model = nested_model()
    trainer_of(tmp_path, model, save_strategy="steps", save_steps=1).train()
    model.generation_config.bits_backend = "fake"
    trainer = trainer_of(tmp_path, model, max_steps=3)
    with caplog.at_level(logging.WARNING):
        trainer.train(resume_from_checkpoint=True)
    assert "`bits_backend` (nested → the default)" in caplog.text


def test_a_run_that_cannot_be_computed_is_refused_when_it_is_made(tmp_path, monkeypatch):
    model = nested_model()
    model.generation_config.max_plane_bytes = 1
    monkeypatch.setattr(type(model.base), "forward", lambda *_, **__: pytest.fail("a forward"))
    settings = CounterfactualWarmupConfig(
        warmup_dir=str(tmp_path / "measured"), warmup_bits=[5], warmup_token_keep=[0.2]
    )
    for make in (lambda: trainer_of(tmp_path, model), lambda: CounterfactualWarmup(model, settings)):
        with pytest.raises(ValueError, match="`max_plane_bytes` is 1: raise it"):
            make()


@pytest.mark.slow
def test_a_policy_is_fitted_to_the_costs_of_planes(tmp_path):
    settings = dict(
        warmup_dir=str(tmp_path / "measured"),
        warmup_blocks=4,
        warmup_context_length=12,
        warmup_steps_per_block=12,
        warmup_token_keep=[0.2],
        warmup_mlp_keep=[0.5],
        warmup_bits=[5, 7],
        warmup_updates=10,
        warmup_episodes=8,
        warmup_cost_models=2,
        warmup_practice_rounds=1,
        warmup_practice_episodes=8,
    )
    model = nested_model(budget_prior=True)
    starter = CounterfactualWarmup(model, CounterfactualWarmupConfig(**settings))
    assert starter.probes.axes == (0, 1, 2, 2, 3) and starter.probes.levels[2:4] == pytest.approx((5 / 16, 8 / 16))
    before = weights(model.policy)
    blocks = torch.randint(3, 99, (4, starter.block_length), generator=torch.Generator().manual_seed(2))
    starter.run(blocks)
    assert changed(before, model.policy)
    written = json.loads((tmp_path / "measured" / "fit.json").read_text())
    assert written["bits_backend"] == "nested"
    model.generation_config.bits_backend = "fake"
    with pytest.raises(ValueError, match="another bits_backend"):
        CounterfactualWarmup(model, CounterfactualWarmupConfig(**settings)).run(blocks)


def test_a_base_without_such_mlps_is_refused(tmp_path):
    model = control(tiny_base("jetmoe", num_local_experts=2, num_experts_per_tok=1))
    model.policy.float()
    with pytest.raises(
        UnsupportedAxisError,
        match=r"gets its tokens in another way.*Leave `mlp_keep` dense.*SOLConfig\(mlp_keep=\[1\]\)",
    ):
        trainer_of(tmp_path, model)
