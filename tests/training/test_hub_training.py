# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A trainer that pushes to the Hub: the files there, and that they can be loaded."""

import json
from typing import Any

import pytest

from support.hub_server import HubClient, HubServer, card_metadata, hub_server_fixture  # noqa: F401


Report = dict[str, Any]
TOKEN, POLICY, ADAPTER = "hf_user", "user/trained", "user/trained-adapter"


def settings(folder: str, repo_id: str) -> Report:
    saving = dict(save_strategy="steps", save_steps=1, hub_always_push=True)
    return dict(folder=folder, hub_model_id=repo_id, hub_token=TOKEN, push_to_hub=True, max_steps=3, **saving)


def train_and_push() -> Report:
    """Train a policy and an adapter on it, and push both; what they do."""
    from sol_hf import SOLForCausalLM
    from support.adapters import LORA, continuation
    from support.trainers import model_on, trainer_of

    trainer = trainer_of(model=model_on(), **settings("policy", POLICY))
    trainer.train()
    trainer.push_to_hub()
    report: Report = {"policy": continuation(trainer.sol).tolist()}

    released = SOLForCausalLM.from_pretrained(POLICY, base=trainer.sol.base)
    report["released"] = continuation(released).tolist()
    arguments = dict(peft_config=LORA, learning_rate=1e-2, hub_strategy="checkpoint")
    trainer = trainer_of(model=released, **arguments, **settings("adapter", ADAPTER))
    trainer.train()
    trainer.push_to_hub()
    report["adapter"] = continuation(trainer.sol).tolist()
    return report


def load() -> Report:
    """Load what was pushed."""
    from sol_hf import SOLForCausalLM
    from support.adapters import continuation
    from support.bases import tiny_base

    models = {"policy": POLICY, "adapter": ADAPTER}
    return {
        name: continuation(SOLForCausalLM.from_pretrained(repo_id, base=tiny_base("llama"))).tolist()
        for name, repo_id in models.items()
    }


@pytest.fixture(scope="module")
def pushed(hub_server: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Report on what was trained, which is on the server from then on."""
    return HubClient(hub_server.url, tmp_path_factory.mktemp("author")).call(train_and_push)


def test_a_repository_holds_a_policy_and_nothing_of_the_run(hub_server: HubServer, pushed: Report):
    files = hub_server.files(POLICY)
    wanted = {"model.safetensors", "config.json", "generation_config.json", "sol_remote.py", "README.md"}
    wanted |= {"sol_plain.py", "custom_generate/generate.py", "tokenizer_config.json"}
    assert wanted <= set(files) <= wanted | {".gitattributes", "training_args.json"}
    history = hub_server.repos[POLICY].history()
    assert any(commit.title.startswith("Training in progress, step ") for commit in history)
    for commit in history:
        assert set(commit.files) <= set(files), "a push while training holds what does not belong there"
    arguments = json.loads(files["training_args.json"])
    assert "hf_user" not in arguments.values()
    assert arguments["save_steps"] == 1 and not {"output_dir", "logging_dir"} & set(arguments)
    card = card_metadata(files["README.md"].decode())
    assert "sol" in card["tags"] and card["library_name"] == "transformers"


def test_an_adapter_names_its_policy(hub_server: HubServer, pushed: Report):
    files = hub_server.files(ADAPTER)
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == POLICY
    assert "model.safetensors" not in files
    assert {"last-checkpoint/adapter_model.safetensors", "last-checkpoint/optimizer.pt"} <= set(files)


def test_others_load_what_was_trained(hub_server: HubServer, pushed: Report, tmp_path):
    loaded = HubClient(hub_server.url, tmp_path / "reader").call(load)
    assert loaded == {"policy": pushed["policy"], "adapter": pushed["adapter"]}
    assert pushed["released"] == pushed["policy"]
