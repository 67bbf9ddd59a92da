# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A model generates by the config that is saved with its policy."""

import copy

import pytest
import torch

from sol_hf import SOLConfig, SOLForCausalLM, SOLPolicyModel
from support.bases import tiny_base
from support.cases import HALF, SETTINGS, prompts


RUN = {"max_new_tokens": 8, "do_sample": False}
OTHER = {
    "criterion": "recency",
    "page_size": 8,
    "selection": "group",
    "sink_tokens": 1,
    "window_tokens": 5,
    "episode_length": 3,
    "bits": [4, 8, 16],
}


@pytest.fixture
def model() -> SOLForCausalLM:
    return SOLForCausalLM.from_base(tiny_base("llama"), SOLConfig(**SETTINGS))


@pytest.mark.parametrize("name", OTHER)
def test_two_configs_that_differ_are_refused(model, name):
    other = copy.deepcopy(model.config)
    setattr(other, name, OTHER[name])
    with pytest.raises(ValueError, match=f"differs from that of its policy in `{name}`"):
        SOLForCausalLM(other, model.base, model.policy)
    model.config = other
    for call in (
        lambda: model.generate(prompts(), **RUN, **HALF),
        lambda: model.score(prompts(), context_length=9, **HALF),
        lambda: model.save_pretrained("never_written"),
    ):
        with pytest.raises(ValueError, match=f"differs from that of its policy in `{name}`"):
            call()


@pytest.mark.parametrize("name", ["criterion", "page_size", "sink_tokens"])
def test_a_changed_config_is_used_and_saved(model, name, tmp_path):
    setattr(model.config, name, OTHER[name])
    output = model.generate(prompts(), **RUN, **HALF)
    model.save_pretrained(tmp_path)
    loaded = SOLForCausalLM.from_pretrained(tmp_path, base=model.base)
    assert getattr(loaded.config, name) == OTHER[name]
    assert torch.equal(loaded.generate(prompts(), **RUN, **HALF), output)


def test_changed_levels_are_used_and_saved(model, tmp_path):
    model.config.bits = [4, 9, 16]
    assert model.action_space.levels["bits"] == (4, 9, 16)
    assert model.new_cache().action_space == model.action_space
    model.save_pretrained(tmp_path)
    assert SOLForCausalLM.from_pretrained(tmp_path, base=model.base).action_space == model.action_space


def test_another_number_of_levels_or_other_episodes_do_not_fit_the_policy(model):
    model.config.bits = [4, 16]
    with pytest.raises(ValueError, match="The policy has 27 actions, but its config describes 18"):
        model.generate(prompts(), **RUN, **HALF)
    model.config.bits = SETTINGS["bits"]
    for length in (3, 7):
        model.config.episode_length = length
        with pytest.raises(ValueError, match=f"made for episodes of 6 steps.*`episode_length` {length}"):
            model.generate(prompts(), **RUN, **HALF)


def test_an_equal_config_becomes_that_of_the_policy(model):
    policy = SOLPolicyModel(copy.deepcopy(model.config))
    config = copy.deepcopy(model.config)
    config.base_model_name_or_path = "someone/else"
    other = SOLForCausalLM(config, model.base, policy)
    assert other.config is policy.config and policy.config.base_model_name_or_path == "someone/else"


def test_another_policy_can_be_put_in(model):
    model.policy = SOLPolicyModel(copy.deepcopy(model.config))
    assert model.generate(prompts(), **RUN, **HALF).shape == (2, 28)
    model.policy = SOLPolicyModel(SOLConfig(**{**model.config.to_dict(), "page_size": 8}))
    with pytest.raises(ValueError, match=r"`page_size` \(4, the policy's 8\)"):
        model.generate(prompts(), **RUN, **HALF)
