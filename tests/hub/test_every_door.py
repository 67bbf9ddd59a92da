# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A policy pushed by one process is used by others with empty caches, through every door, and when things go wrong.

The functions before the fixtures run in processes of their own; those of strangers cannot import `sol_hf`.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.hub_server import Fault, HubClient, HubServer, hub_server_fixture  # noqa: F401


pytestmark = pytest.mark.slow

BASE, SOL, CLOSED_BASE, CLOSED_SOL, GATED = (
    f"user/{name}" for name in "base sol closed-base closed-sol gated".split()
)
TOKEN, READER = "hf_user", "hf_reader"
TEXT = " ".join(f"w{number * 7 % 60 + 1}" for number in range(20))
BUDGET = {"token_keep": 0.5, "mlp_keep": 0.7, "bits": 8}
CALL = {"max_new_tokens": 12, "do_sample": False, "backend": "reference"}


def tokens_of(model, tokenizer, **further) -> list[int]:
    inputs = tokenizer(TEXT, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    return model.generate(**inputs, **CALL, **BUDGET, **further)[0].tolist()


def publish() -> dict[str, Any]:
    """Push two bases, of which one has a licence that allows no copies of its tokenizer, and policies for them."""
    import torch
    from huggingface_hub import HfApi
    from test_hub import fresh_model, shuffle_policy, tiny_llama, tiny_tokenizer

    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    for base, license in ((BASE, "apache-2.0"), (CLOSED_BASE, "other")):
        tiny_llama(0).push_to_hub(base, token=TOKEN)
        tokenizer.push_to_hub(base, token=TOKEN)
        card = f"---\nlicense: {license}\n---\n# A base\n".encode()
        HfApi().upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id=base, token=TOKEN)
    found = {}
    for base, repo in ((BASE, SOL), (CLOSED_BASE, CLOSED_SOL), (BASE, GATED)):
        model = fresh_model(base)
        model.generation_config.budget_horizon = "episode"
        model.push_to_hub(repo, token=TOKEN)
        found[repo] = tokens_of(model, tokenizer)
    torch.manual_seed(5)
    inputs = tokenizer(TEXT, return_tensors="pt").input_ids
    found["sampled"] = model.generate(inputs, **{**CALL, "do_sample": True}, **BUDGET)[0].tolist()
    shuffle_policy(model, 9)
    found["dense"] = model.generate(inputs, max_new_tokens=12, do_sample=False)[0].tolist()
    return found


def every_door(repo: str) -> dict[str, Any]:
    """What comes out of the doors of a repository, with `trust_remote_code` and without an import of the package."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, pipeline

    trusted: dict[str, Any] = dict(trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(repo, **trusted)
    config, policy = AutoConfig.from_pretrained(repo, **trusted), AutoModel.from_pretrained(repo, **trusted)
    model = AutoModelForCausalLM.from_pretrained(repo, **trusted)
    base = AutoModelForCausalLM.from_pretrained(config.base_model_name_or_path)
    found: dict[str, Any] = {
        "auto": tokens_of(model, tokenizer),
        "custom_generate": tokens_of(base, tokenizer, custom_generate=repo, **trusted),
        "again": tokens_of(base, tokenizer, custom_generate=repo, **trusted),
        "horizon": model.generation_config.budget_horizon,
        "chat": tokenizer.apply_chat_template([{"role": "user", "content": "w1"}], tokenize=False),
        "modules": sorted({type(part).__module__.split(".")[0] for part in (config, policy, model)}),
    }
    line = pipeline("text-generation", model=repo, **trusted)
    found["pipeline"] = line(TEXT, return_tensors=True, **CALL, **BUDGET)[0]["generated_token_ids"]
    torch.manual_seed(5)
    inputs = tokenizer(TEXT, return_tensors="pt").input_ids
    found["sampled"] = model.generate(inputs, **{**CALL, "do_sample": True}, **BUDGET)[0].tolist()
    model.save_pretrained("again")
    found["saved again"] = sorted(path.name for path in Path("again").iterdir())
    found["imported"] = "sol_hf" in sys.modules
    return found


def error_of(function: Callable[[], Any]) -> list[str]:
    """Classes of an error and its causes, and their messages."""
    try:
        function()
    except Exception as caught:
        found: list[str] = []
        error: BaseException | None = caught
        while error is not None:
            found += [*(kind.__name__ for kind in type(error).__mro__), str(error)]
            error = error.__cause__ or error.__context__
        return found
    return []


def load(**kwargs) -> list[list[list[float]]]:
    """Load the policy of `SOL`; some of its numbers."""
    from sol_hf import SOLPolicyModel

    return SOLPolicyModel.from_pretrained(SOL, **kwargs).input_projection.weight[:2, :4].tolist()


def try_to_load(**kwargs) -> dict[str, Any]:
    """The error of a load, or else what was loaded."""
    found: list = []
    error = error_of(lambda: found.append(load(**kwargs)))
    return {"error": error, "numbers": found}


def be_refused() -> dict[str, list[str]]:
    """What those see who have no access."""
    from sol_hf import SOLForCausalLM

    return {
        "nobody": error_of(lambda: SOLForCausalLM.from_pretrained(GATED, token=False)),
        "reader": error_of(lambda: SOLForCausalLM.from_pretrained(GATED, token=READER)),
        "wrong": error_of(lambda: SOLForCausalLM.from_pretrained(SOL, token="hf_wrong")),
        "owner": error_of(lambda: SOLForCausalLM.from_pretrained(GATED, token=TOKEN)),
    }


@pytest.fixture(scope="module")
def client(hub_server: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., HubClient]:
    """Makes clients with empty caches."""
    return lambda **settings: HubClient(hub_server.url, tmp_path_factory.mktemp("client"), **settings)


@pytest.fixture(scope="module")
def published(client) -> dict[str, Any]:
    return client().call(publish)


def check_doors(found: dict[str, Any], published: dict[str, Any], repo: str) -> None:
    assert found["auto"] == published[repo] != published["dense"]
    assert [found[name] for name in ("custom_generate", "again", "pipeline")] == [found["auto"]] * 3
    assert found["sampled"] == published["sampled"]
    assert found["horizon"] == "episode" and found["chat"] == "w1 "
    assert {"sol_remote.py", "sol_plain.py", "custom_generate", "model.safetensors"} <= set(found["saved again"])


def test_every_door_without_the_package(hub_server: HubServer, client, published: dict[str, Any]):
    found = client(has_package=False).call(every_door, repo=SOL)
    check_doors(found, published, SOL)
    assert not found["imported"] and found["modules"] == ["transformers_modules"]
    assert "tokenizer.json" in hub_server.files(SOL) and "chat_template.jinja" in hub_server.files(SOL)


def test_every_door_with_the_package(client, published: dict[str, Any]):
    found = client().call(every_door, repo=SOL)
    check_doors(found, published, SOL)
    assert found["imported"] and found["modules"] == ["sol_hf"]


def test_a_tokenizer_that_may_not_be_copied_is_taken_from_the_base(hub_server: HubServer, client, published):
    assert "tokenizer.json" not in hub_server.files(CLOSED_SOL)
    check_doors(client(has_package=False).call(every_door, repo=CLOSED_SOL), published, CLOSED_SOL)


def test_those_without_access_are_told_why(hub_server: HubServer, client, published: dict[str, Any]):
    hub_server.repos[GATED].gated = True
    found = client().call(be_refused)
    for name in ("nobody", "reader"):
        assert "GatedRepoError" in found[name] and "OSError" in found[name], found[name]
    assert any("401" in part for part in found["wrong"]) and found["owner"] == []


def test_faults_of_the_network_are_overcome_or_named(hub_server: HubServer, client, published: dict[str, Any]):
    """A server that is busy, a connection that is cut, and content that is changed on the way."""
    user, weights = client(), f"GET /{SOL}/resolve/.*model.safetensors"
    hub_server.faults = [Fault(weights, "corrupt")]
    damaged = user.call(try_to_load)
    assert "ValueError" in damaged["error"] and "are not those on the Hub" in " ".join(damaged["error"])
    good = user.call(try_to_load, force_download=True)
    assert good["error"] == [] and len(good["numbers"]) == 1
    hub_server.faults = [Fault(weights, "cut"), Fault(f"GET /{SOL}/resolve/.*config.json", "status", 2, 429)]
    cut = client()
    first = cut.call(try_to_load)
    if first["error"]:
        assert "OSError" in first["error"], first["error"]
        first = cut.call(try_to_load)
    assert first["numbers"] == good["numbers"]
    hub_server.faults = [Fault(f"(HEAD|GET) /{SOL}/resolve/.*", "status", 1000, 503)]
    assert cut.call(try_to_load)["numbers"] == good["numbers"], "the cache serves while the Hub does not"
    hub_server.faults = []


def test_an_upload_survives_a_busy_server(hub_server: HubServer, client, published: dict[str, Any]):
    hub_server.faults = [Fault("PUT /lfs/.*", "status", 1), Fault("POST .*/preupload/.*", "status", 1)]
    assert client().call(push_again) == hub_server.repos[SOL].refs["main"]
    assert all(fault.times == 0 for fault in hub_server.faults)


def push_again() -> str:
    """Push another policy to `SOL`; the head afterwards."""
    from huggingface_hub import HfApi
    from test_hub import fresh_model, shuffle_policy

    model = fresh_model(BASE)
    shuffle_policy(model, 4)
    model.push_to_hub(SOL, token=TOKEN)
    return HfApi().model_info(SOL).sha
