# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Pushing to a repository that holds something already: what is loaded from it is what was pushed last."""

from typing import Any

import pytest

from support.hub_server import HubClient, HubServer, hub_server_fixture  # noqa: F401


Report = dict[str, Any]
TOKEN, POLICY, REPO = "hf_user", "user/policy", "user/adapter"


def push_and_load() -> Report:
    """Push a policy, an adapter on another one and that policy with it to one repository; what is loaded each time."""
    import tempfile
    from pathlib import Path

    import torch
    from huggingface_hub import HfApi
    from peft import get_peft_model

    from sol_hf import SOLForCausalLM
    from support.adapters import LORA, continuation
    from support.bases import tiny_base
    from support.policy_folders import save_policy

    def load(name):
        return SOLForCausalLM.from_pretrained(name, base=tiny_base("llama"))

    steps: list[Report] = []

    def push(model):
        model.push_to_hub(REPO, token=TOKEN)
        files = HfApi().list_repo_files(REPO)
        steps.append({"same": torch.equal(continuation(load(REPO)), continuation(model)), "files": sorted(files)})

    with tempfile.TemporaryDirectory() as folder:
        model = load(save_policy(Path(folder)))
    model.push_to_hub(POLICY, token=TOKEN)
    older = load(POLICY)
    for parameter in older.policy.parameters():
        parameter.data.mul_(-1)
    push(older)
    HfApi().upload_file(path_or_fileobj=b"mine", path_in_repo="models/a.safetensors", repo_id=REPO, token=TOKEN)
    model = load(POLICY)
    torch.manual_seed(2)
    model.policy = get_peft_model(model.policy, LORA).eval()
    for name, parameter in model.policy.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    push(model)
    model.policy = model.policy.merge_and_unload()
    push(model)
    return {"steps": steps}


@pytest.mark.slow
def test_what_is_loaded_is_what_was_pushed_last(hub_server: HubServer, tmp_path):
    policy, adapter, merged = HubClient(hub_server.url, tmp_path / "author").call(push_and_load)["steps"]
    assert policy["same"] and adapter["same"] and merged["same"]
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(adapter["files"])
    assert not {"config.json", "model.safetensors"} & set(adapter["files"])
    assert set(merged["files"]) == set(policy["files"]) | {"models/a.safetensors"}
