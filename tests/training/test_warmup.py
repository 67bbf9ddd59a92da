# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The supervised start: it learns, it is fitted once, and its settings are checked."""

import pytest
import torch
from datasets import Dataset

from sol_hf import SOLForCausalLM
from sol_hf.training.warmup import CounterfactualWarmup, CounterfactualWarmupConfig, warmup_blocks
from support.bases import tiny_base
from support.cases import control, sol_model


@pytest.fixture
def config(tmp_path):
    return CounterfactualWarmupConfig(
        warmup_dir=str(tmp_path / "measured"),
        warmup_blocks=4,
        warmup_context_length=12,
        warmup_steps_per_block=12,
        warmup_token_keep=[0.2],
        warmup_mlp_keep=[],
        warmup_bits=[3],
        warmup_updates=30,
        warmup_episodes=16,
        warmup_cost_models=2,
        warmup_learning_rate=3e-3,
        warmup_practice_rounds=1,
        warmup_practice_episodes=8,
        warmup_save_every=15,
    )


def tiny(config):
    model = control(tiny_base("llama", torch.float32), observe_page_fill=True)
    levels = model.action_space.levels
    config.warmup_token_keep = [min(levels["token_keep"])]
    config.warmup_mlp_keep = [min(levels["mlp_keep"])]
    config.warmup_bits = [min(levels["bits"])]
    return CounterfactualWarmup(model, config)


def test_it_learns_and_a_second_run_loads_what_was_fitted(config, monkeypatch):
    starter = tiny(config)
    blocks = torch.randint(3, 99, (4, starter.block_length), generator=torch.Generator().manual_seed(2))
    before = {name: tensor.clone() for name, tensor in starter.model.policy.state_dict().items()}
    losses = []
    real = CounterfactualWarmup.fit
    monkeypatch.setattr(CounterfactualWarmup, "fit", lambda self, *given: losses.extend(real(self, *given)))
    starter.run(blocks)
    assert len(losses) == 30 and sum(losses[-5:]) < sum(losses[:5])
    fitted = starter.model.policy.state_dict()
    assert any(not torch.equal(before[name], fitted[name]) for name in before)
    kept = [
        SOLForCausalLM.from_pretrained(path, base=starter.model.base)
        for path in sorted(starter.folder.glob("update-*"))
    ]
    states = [copy.policy.state_dict() for copy in kept]
    assert [path.name for path in sorted(starter.folder.glob("update-*"))] == ["update-00015", "update-00030"]
    assert all(torch.equal(states[1][name], fitted[name]) for name in fitted)
    assert any(not torch.equal(states[0][name], fitted[name]) for name in fitted)
    again = tiny(config)
    again.run(blocks)
    assert len(losses) == 30
    assert all(torch.equal(again.model.policy.state_dict()[name], fitted[name]) for name in fitted)


def test_bad_settings_are_refused(config):
    with pytest.raises(ValueError, match="warmup_updates"):
        CounterfactualWarmupConfig(warmup_updates=0)
    with pytest.raises(ValueError, match="repayment_spread"):
        CounterfactualWarmupConfig(warmup_repayment_spread=-1)
    with pytest.raises(ValueError, match="warmup_dir"):
        CounterfactualWarmup(sol_model("llama", torch.float32), CounterfactualWarmupConfig())
    with pytest.raises(ValueError, match="make 2 blocks only"):
        warmup_blocks(Dataset.from_dict({"input_ids": [[1], [2]]}), config)
