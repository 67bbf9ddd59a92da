# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The card of a trained policy says how it was made, and nothing of the machine on which it was."""

import yaml

from sol_hf import SOLConfig
from sol_hf.hub.model_card import build_card
from sol_hf.hub.recipe import recipe_of, recipe_text
from sol_hf.training.grpo_config import SOLGRPOConfig
from sol_hf.training.warmup import CounterfactualWarmupConfig


def arguments(**settings) -> SOLGRPOConfig:
    return SOLGRPOConfig(output_dir="/home/somebody/run", use_cpu=True, report_to=[], **settings)


def test_the_changed_settings_are_there():
    settings = dict(max_steps=7, learning_rate=2e-3, token_keep_budgets=[0.3, 0.5], save_strategy="no")
    found = recipe_of(arguments(**settings), updates=7)
    assert found.items() >= {**settings, "updates": 7}.items()
    assert "gamma" not in found


def test_nothing_of_the_machine_is_there():
    text = recipe_text(
        {"SOLGRPOTrainer": recipe_of(arguments(hub_token="hf_secret", run_name="my run", log_level="info"))}
    )
    for secret in ("somebody", "hf_secret", "my run"):
        assert secret not in text


def test_the_card_has_the_stages_as_yaml():
    stages = {
        "CounterfactualWarmup": recipe_of(CounterfactualWarmupConfig(warmup_dir="/tmp/x", warmup_seed=3), blocks=12),
        "SOLGRPOTrainer": recipe_of(arguments(gamma=0.5)),
    }
    text = build_card(SOLConfig(), recipe=stages).text
    written = yaml.safe_load(text.split("```yaml")[1].split("```")[0])
    assert written["CounterfactualWarmup"] == {"blocks": 12, "warmup_seed": 3}
    assert written["SOLGRPOTrainer"]["gamma"] == 0.5 and "/tmp" not in text


def test_an_unknown_recipe_is_called_unknown():
    text = build_card(SOLConfig()).text
    assert "## How it was made\n\nThis is not recorded here." in text and "```yaml" not in text
