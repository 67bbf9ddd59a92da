# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Pushing to the Hub, loading from it, and the requests of the client.

The functions before the fixtures run in processes of their own, through [`HubClient.call`]; they import what they need
there, and take and return JSON.
"""

import hashlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.hub_server import HubClient, HubServer, card_errors, card_metadata, hub_server_fixture  # noqa: F401


Report = dict[str, Any]

TOKEN, READER, WRONG = "hf_user", "hf_reader", "hf_wrong"
BASE, SOL, PINNED = "user/tiny-base", "user/tiny-sol", "user/pinned-sol"
PRIVATE_BASE, PRIVATE_SOL = "user/private-base", "user/private-sol"
PROMPT = [[3, 14, 15, 9, 26, 5, 35, 8, 9, 7, 9, 3, 23, 8, 46, 2]]
BUDGET = {"token_keep": 0.75, "mlp_keep": 0.75, "bits": 12}
NOTE = "A sentence that its author wrote into the card."


def digest(module) -> str:
    """SHA-256 of a module's state dict."""
    result = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        result.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        result.update(tensor.detach().contiguous().numpy().tobytes())
    return result.hexdigest()


def greedy(model, **budget):
    """Output of a greedy generation from the prompt."""
    import torch

    prompt = torch.tensor(PROMPT)
    settings = {"do_sample": False, "max_new_tokens": 12, "return_dict_in_generate": True}
    return model.generate(prompt, attention_mask=torch.ones_like(prompt), **settings, **budget)


def describe(model) -> Report:
    """What a loaded model must have in common with the one that was pushed."""
    output = greedy(model, **BUDGET)
    return {
        "class": f"{type(model).__module__}.{type(model).__name__}",
        "policy": digest(model.policy),
        "base": digest(model.base),
        "tokens": output.sequences.tolist(),
        "actions": output.actions.tolist(),
    }


def error_of(function: Callable[[], Any]) -> Report:
    """Names of the classes of the error that `function` raises and of its causes, and their messages."""
    types: list[str] = []
    texts: list[str] = []
    try:
        function()
    except Exception as caught:
        error: BaseException | None = caught
        while error is not None:
            types += [kind.__name__ for kind in type(error).__mro__]
            texts.append(str(error))
            error = error.__cause__ or error.__context__
    return {"types": types, "text": "\n".join(texts)}


def tiny_llama(seed: int):
    """A Llama of 2 layers with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, initializer_range=0.5, eos_token_id=None)).eval()


def tiny_tokenizer():
    """A tokenizer of 64 words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<unk>": 0, **{f"w{i}": i for i in range(1, 64)}}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")


def shuffle_policy(model, seed: int) -> None:
    """Give the policy large random weights, so that its choices depend on them."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))


def push_bases() -> Report:
    """Push two revisions of a public base, load both back, and push a private base."""
    from huggingface_hub import HfApi
    from transformers import AutoModelForCausalLM

    report: Report = {"revisions": [], "pushed": [], "loaded": []}
    for seed in (0, 1):
        base = tiny_llama(seed)
        report["revisions"].append(base.push_to_hub(BASE, token=TOKEN).oid)
        report["pushed"].append(digest(base))
    for revision in report["revisions"]:
        report["loaded"].append(digest(AutoModelForCausalLM.from_pretrained(BASE, revision=revision)))
    report["latest"] = digest(AutoModelForCausalLM.from_pretrained(BASE))
    report["missing"] = error_of(lambda: AutoModelForCausalLM.from_pretrained("user/nothing"))
    report["unknown"] = error_of(lambda: AutoModelForCausalLM.from_pretrained(BASE, revision="nothing"))
    tiny_tokenizer().push_to_hub(BASE, token=TOKEN)
    card = dict(path_or_fileobj=b"---\nlicense: mit\n---\n# A base\n", path_in_repo="README.md")
    report["latest_commit"] = HfApi().upload_file(repo_id=BASE, token=TOKEN, **card).oid
    tiny_llama(2).push_to_hub(PRIVATE_BASE, token=TOKEN, private=True)
    return report


def fresh_model(base_id: str, revision: str | None = None, **settings):
    """A base from the Hub with a random policy."""
    from transformers import AutoModelForCausalLM

    from sol_hf import SOLConfig, SOLForCausalLM

    config = SOLConfig(
        token_keep=[0.5, 1.0],
        mlp_keep=[0.5, 1.0],
        bits=[8, 16],
        policy_hidden_size=16,
        policy_num_heads=2,
        episode_length=4,
        base_model_name_or_path=base_id,
        **settings,
    )
    base = AutoModelForCausalLM.from_pretrained(base_id, revision=revision or "main", token=TOKEN)
    model = SOLForCausalLM.from_base(base, config)
    shuffle_policy(model, 0)
    return model


def push(model, repo_id: str, folder: str | None = None, **kwargs) -> Report:
    """Push a model, at once or with `save_pretrained`; what it is, and the head of the branch afterwards."""
    from huggingface_hub import HfApi

    if folder is None:
        model.push_to_hub(repo_id, token=TOKEN, **kwargs)
    else:
        model.save_pretrained(folder, push_to_hub=True, repo_id=repo_id, token=TOKEN, **kwargs)
    info = HfApi().model_info(repo_id, token=TOKEN, revision=kwargs.get("revision"))
    return {**describe(model), "head": info.sha, "names": sorted(model.policy.state_dict())}


def publish(old_base: str) -> Report:
    """Push policies in all the ways that the tests look at."""
    from huggingface_hub import HfApi, ModelCard

    model = fresh_model(BASE)
    report: Report = {"dense": greedy(model).sequences.tolist(), "first": push(model, SOL)}
    report["size"] = sum(tensor.nbytes for tensor in model.policy.state_dict().values())
    card = ModelCard.load(SOL, token=TOKEN)
    card.text += f"\n{NOTE}\n"
    HfApi().upload_file(path_or_fileobj=str(card).encode(), path_in_repo="README.md", repo_id=SOL, token=TOKEN)
    shuffle_policy(model, 1)
    report["second"] = push(model, SOL, commit_message="Train for longer")
    shuffle_policy(model, 2)
    report["branch"] = push(model, SOL, revision="experiment", tags=["tried"])
    model.push_to_hub(SOL, token=TOKEN, create_pr=True)
    report["wrong"] = error_of(lambda: model.push_to_hub("user/refused", token=WRONG))
    report["foreign"] = error_of(lambda: model.push_to_hub(SOL, token=READER))
    report["pinned"] = push(fresh_model(BASE, old_base, base_model_revision=old_base), PINNED, tags=["pinned"])
    report["private"] = push(fresh_model(PRIVATE_BASE), PRIVATE_SOL, "private", private=True)
    return report


def consume(first: str) -> Report:
    """Load everything that was published, with `sol_hf` imported."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

    import sol_hf

    load = sol_hf.SOLForCausalLM.from_pretrained
    report: Report = {
        "wrong": error_of(lambda: load(SOL, token=WRONG)),
        "anonymous": error_of(lambda: load(PRIVATE_SOL)),
        "unknown": error_of(lambda: load(SOL, revision="nothing")),
        "missing": error_of(lambda: load("user/nothing")),
    }
    config = AutoConfig.from_pretrained(SOL)
    report["config"] = {"class": type(config).__name__, "base": config.base_model_name_or_path}
    policy = AutoModel.from_pretrained(SOL)
    report["policy"] = {"class": type(policy).__name__, "policy": digest(policy), "training": policy.training}
    report["auto"] = describe(AutoModelForCausalLM.from_pretrained(SOL))
    report["first_auto"] = describe(AutoModelForCausalLM.from_pretrained(SOL, revision=first))
    report["first"] = describe(load(SOL, revision=first, token=TOKEN))
    report["second"] = describe(load(SOL, token=READER))
    report["branch"] = describe(load(SOL, revision="experiment"))
    report["pinned"] = describe(load(PINNED))
    report["private_base"] = error_of(lambda: load(PRIVATE_SOL, token=TOKEN))
    report["private"] = describe(load(PRIVATE_SOL, token=TOKEN, base_token=TOKEN))
    report["private_auto"] = describe(AutoModelForCausalLM.from_pretrained(PRIVATE_SOL, token=TOKEN, base_token=TOKEN))
    report["tokenizer"] = AutoTokenizer.from_pretrained(SOL, token=READER)("w3 w14").input_ids
    report["loaded_revision"] = load(SOL).config.base_model_revision
    return report


def consume_remote_code() -> Report:
    """Load without an import of `sol_hf`, and save what was loaded.

    A `whoami` marks in the server's log where the policy has been loaded and the wrapped model has not.
    """
    from huggingface_hub import whoami
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    report: Report = {"imported": "sol_hf" in sys.modules}
    config = AutoConfig.from_pretrained(SOL, trust_remote_code=True)
    policy = AutoModel.from_pretrained(SOL, trust_remote_code=True)
    whoami(token=TOKEN)
    model = AutoModelForCausalLM.from_pretrained(SOL, trust_remote_code=True)
    report["classes"] = [f"{type(part).__module__}.{type(part).__name__}" for part in (config, policy, model)]
    report["policy"] = digest(policy)
    report["model"] = describe(model)
    for name, part in {"policy": policy, "model": model}.items():
        part.save_pretrained(f"saved-{name}")
        saved = json.loads(Path(f"saved-{name}", "config.json").read_text())
        report[f"saved_{name}"] = {
            "files": sorted(path.name for path in Path(f"saved-{name}").iterdir()),
            "auto_map": saved.get("auto_map"),
        }
    return report


def consume_offline(first: str) -> Report:
    """Load from the cache."""
    from transformers import AutoModelForCausalLM

    import sol_hf

    load = sol_hf.SOLForCausalLM.from_pretrained
    return {
        "second": describe(load(SOL)),
        "first": describe(load(SOL, revision=first)),
        "auto": describe(AutoModelForCausalLM.from_pretrained(SOL)),
        "pinned": describe(load(PINNED)),
        "never": error_of(lambda: load("user/nothing")),
    }


def run_snippets(snippets: list[str]) -> list[list]:
    """Run the code of a card: what wrote the text, and the number of its new tokens."""
    found = []
    for snippet in snippets:
        names: dict[str, Any] = {}
        exec(snippet, names)
        output = names["output"]
        text = output.sequences if hasattr(output, "sequences") else output
        found.append(
            [next(n for n in ("model", "base") if n in names), text.shape[1] - names["inputs"].input_ids.shape[1]]
        )
    return found


@pytest.fixture(scope="module")
def author(hub_server: HubServer, tmp_path_factory: pytest.TempPathFactory) -> HubClient:
    """The machine that pushes."""
    return HubClient(hub_server.url, tmp_path_factory.mktemp("author"))


@pytest.fixture(scope="module")
def bases(author: HubClient) -> Report:
    """Report on the bases, which are on the server from then on."""
    return author.call(push_bases)


@pytest.fixture(scope="module")
def published(author: HubClient, bases: Report) -> Report:
    """Report on the policies, which are on the server from then on."""
    return author.call(publish, old_base=bases["revisions"][0])


@pytest.fixture(scope="module")
def reader(hub_server: HubServer, tmp_path_factory: pytest.TempPathFactory) -> HubClient:
    """Another machine, whose cache starts empty."""
    return HubClient(hub_server.url, tmp_path_factory.mktemp("reader"))


@pytest.fixture(scope="module")
def consumed(reader: HubClient, published: Report) -> Report:
    """Report on what the reader has loaded."""
    return reader.call(consume, first=published["first"]["head"])


def same_model(loaded: Report, pushed: Report) -> bool:
    return all(loaded[key] == pushed[key] for key in ("class", "policy", "base", "tokens", "actions"))


def stored_config(server: HubServer, repo_id: str, revision: str = "main") -> Report:
    return json.loads(server.files(repo_id, revision)["config.json"])


def test_plain_model_makes_the_round_trip(bases: Report):
    assert bases["loaded"] == bases["pushed"]
    assert bases["latest"] == bases["pushed"][1] != bases["pushed"][0]
    assert "RepositoryNotFoundError" in bases["missing"]["types"]
    assert "RevisionNotFoundError" in bases["unknown"]["types"]


def test_loaded_model_equals_the_pushed_one(published: Report, consumed: Report):
    second = published["second"]
    assert second["class"] == "sol_hf.modeling_sol.SOLForCausalLM"
    assert same_model(consumed["second"], second)
    assert same_model(consumed["auto"], second)
    assert len(set(second["actions"][0])) > 1
    assert second["tokens"] != published["dense"]
    assert second["actions"] != published["first"]["actions"]


def test_auto_classes_find_config_and_policy(published: Report, consumed: Report):
    assert consumed["config"] == {"class": "SOLConfig", "base": BASE}
    policy = {"class": "SOLPolicyModel", "policy": published["second"]["policy"], "training": False}
    assert consumed["policy"] == policy


def test_every_push_is_a_revision_that_still_loads(hub_server: HubServer, published: Report, consumed: Report):
    history = hub_server.repos[SOL].history()
    assert history[0].oid == published["second"]["head"]
    assert history[0].title == "Train for longer"
    assert published["first"]["head"] in [commit.oid for commit in history[1:]]
    assert published["first"]["policy"] != published["second"]["policy"]
    assert same_model(consumed["first"], published["first"])
    assert same_model(consumed["first_auto"], published["first"])


def test_branch_and_pull_request_leave_main_alone(hub_server: HubServer, published: Report, consumed: Report):
    refs = hub_server.repos[SOL].refs
    assert set(refs) == {"main", "experiment", "refs/pr/1"}
    assert refs["main"] == published["second"]["head"] != refs["experiment"]
    assert same_model(consumed["branch"], published["branch"])
    proposed = hub_server.files(SOL, "refs/pr/1")
    assert proposed["model.safetensors"] == hub_server.files(SOL, "experiment")["model.safetensors"]


def test_base_revision_of_the_config_is_loaded(
    hub_server: HubServer, bases: Report, consumed: Report, published: Report
):
    assert stored_config(hub_server, PINNED)["base_model_revision"] == bases["revisions"][0]
    assert consumed["pinned"]["base"] == bases["pushed"][0]
    assert consumed["second"]["base"] == bases["pushed"][1]
    assert same_model(consumed["pinned"], published["pinned"])


def test_policy_and_base_have_a_token_each(hub_server: HubServer, published: Report, consumed: Report):
    assert hub_server.repos[PRIVATE_SOL].private
    assert same_model(consumed["private"], published["private"])
    assert same_model(consumed["private_auto"], published["private"])
    refused = consumed["private_base"]
    assert "OSError" in refused["types"] and "RepositoryNotFoundError" in refused["types"]
    assert f"The base {PRIVATE_BASE} of the policy in {PRIVATE_SOL} could not be loaded" in refused["text"]
    assert "pass `base_token=`; the token of the policy is not used for it" in refused["text"]
    assert "RepositoryNotFoundError" in consumed["anonymous"]["types"]
    downloads = [entry for entry in hub_server.log if PRIVATE_BASE in entry.path and entry.method == "GET"]
    assert {entry.user for entry in downloads if "resolve" in entry.path} == {"user"}
    of_the_base = [entry for entry in hub_server.log if f"/{BASE}/" in entry.path and entry.user == "reader"]
    assert not of_the_base, "the token for the policy was sent to its base"


def test_the_commit_of_the_base_is_noted(bases: Report, consumed: Report):
    assert consumed["loaded_revision"] == bases["latest_commit"]


def test_the_base_lends_its_tokenizer(consumed: Report):
    assert consumed["tokenizer"] == [3, 14]


def test_refused_requests_raise_the_errors_of_the_client(hub_server: HubServer, published: Report, consumed: Report):
    for report in (published["wrong"], consumed["wrong"]):
        assert "HfHubHTTPError" in report["types"]
        assert "401" in report["text"] and "Invalid credentials" in report["text"]
    assert "HfHubHTTPError" in published["foreign"]["types"]
    assert "403" in published["foreign"]["text"]
    assert "RevisionNotFoundError" in consumed["unknown"]["types"]
    assert "RepositoryNotFoundError" in consumed["missing"]["types"]
    assert all("OSError" in consumed[name]["types"] for name in ("wrong", "anonymous", "unknown", "missing"))
    assert "user/refused" not in hub_server.repos


def test_repository_holds_the_policy_only(hub_server: HubServer, published: Report):
    files = hub_server.files(SOL)
    config = stored_config(hub_server, SOL)
    assert {reference.partition(".")[0] for reference in config["auto_map"].values()} == {"sol_remote"}
    policy = {"README.md", "config.json", "generation_config.json", "model.safetensors"}
    code = {"sol_remote.py", "sol_plain.py", "custom_generate/generate.py"}
    tokenizer = {"tokenizer.json", "tokenizer_config.json"}  # the licence of the base allows a copy
    assert set(files) == {".gitattributes"} | policy | code | tokenizer
    weights = files["model.safetensors"]
    header = json.loads(weights[8 : 8 + int.from_bytes(weights[:8], "little")])
    assert sorted(set(header) - {"__metadata__"}) == published["second"]["names"]
    assert len(weights) < published["size"] + 16_384
    assert sum(len(files[name]) for name in policy) < published["size"] + 32_768
    assert hub_server.repos[SOL].commit_at("main").files["model.safetensors"].lfs


def test_config_names_base_and_classes(hub_server: HubServer, published: Report):
    config = stored_config(hub_server, SOL)
    assert config["model_type"] == "sol"
    assert config["base_model_name_or_path"] == BASE
    assert config["architectures"] == ["SOLForCausalLM"]
    assert set(config["auto_map"]) == {"AutoConfig", "AutoModel", "AutoModelForCausalLM"}


def test_nothing_of_the_author_is_in_the_files(hub_server: HubServer, author: HubClient, published: Report):
    for repo_id in (SOL, PINNED, PRIVATE_SOL):
        for path, content in hub_server.files(repo_id).items():
            assert str(author.home).encode() not in content, path
            assert TOKEN.encode() not in content, path


def test_card_has_the_metadata_of_the_hub(hub_server: HubServer, published: Report):
    card = hub_server.files(SOL)["README.md"].decode()
    assert card_errors(card) == []
    metadata = card_metadata(card)
    tags = metadata.pop("tags")
    assert "sol" in tags
    assert metadata == {
        "base_model": BASE,
        "base_model_relation": "adapter",
        "library_name": "transformers",
        "license": "mit",
        "pipeline_tag": "text-generation",
    }
    assert "pinned" in card_metadata(hub_server.files(PINNED)["README.md"].decode())["tags"]


def test_card_that_was_edited_stays(hub_server: HubServer, published: Report):
    assert NOTE in hub_server.files(SOL)["README.md"].decode()
    assert NOTE not in hub_server.files(SOL, published["first"]["head"])["README.md"].decode()


@pytest.mark.slow
def test_snippet_of_the_card_runs(hub_server: HubServer, reader: HubClient, published: Report):
    snippets = re.findall(r"```python\n(.*?)```", hub_server.files(SOL)["README.md"].decode(), re.DOTALL)
    assert len(snippets) == 2 and all(SOL in snippet and BASE in snippet for snippet in snippets)
    assert reader.call(run_snippets, snippets=snippets) == [["model", 64], ["base", 64]]


@pytest.mark.slow
def test_remote_code_loads_without_an_import(
    hub_server: HubServer, tmp_path_factory: pytest.TempPathFactory, published: Report
):
    begin = len(hub_server.log)
    report = HubClient(hub_server.url, tmp_path_factory.mktemp("stranger")).call(consume_remote_code)
    paths = [entry.path for entry in hub_server.log[begin:]]
    assert not report["imported"]
    assert report["classes"] == [
        "sol_hf.configuration_sol.SOLConfig",
        "sol_hf.modeling_sol_policy.SOLPolicyModel",
        "sol_hf.modeling_sol.SOLForCausalLM",
    ]
    assert report["policy"] == published["second"]["policy"]
    assert same_model(report["model"], published["second"])
    assert not [path for path in paths[: paths.index("/api/whoami-v2")] if BASE in path], "the policy needs no base"
    pushed = set(hub_server.files(SOL)) - {".gitattributes", "tokenizer.json", "custom_generate/generate.py"}
    assert set(report["saved_model"]["files"]) == pushed | {"custom_generate"}
    assert report["saved_model"]["auto_map"] == stored_config(hub_server, SOL)["auto_map"]
    assert set(report["saved_policy"]["files"]) <= pushed


@pytest.mark.slow
def test_offline_loads_from_the_cache(hub_server: HubServer, reader: HubClient, consumed: Report, published: Report):
    begin = len(hub_server.log)
    report = reader.call(consume_offline, offline=True, first=published["first"]["head"])
    assert hub_server.log[begin:] == []
    for name, pushed in (("second", "second"), ("auto", "second"), ("first", "first"), ("pinned", "pinned")):
        assert same_model(report[name], published[pushed]), name
    assert "OSError" in report["never"]["types"]
