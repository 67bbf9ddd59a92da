# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Whether a file is there, absent, or unknown; and which names are those of repositories."""

from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RemoteEntryNotFoundError

from sol_hf import SOLForCausalLM
from sol_hf.stored import files
from sol_hf.stored.files import find_file
from sol_hf.stored.hub_names import hub_id, snapshot_commit, without_paths
from support.bases import tiny_base
from support.policy_folders import save_policy


COMMIT = "0123456789abcdef0123456789abcdef01234567"
ANSWER: Any = SimpleNamespace(headers={}, request=None, status_code=503)


def answering(monkeypatch, error: Exception) -> None:
    def download(*args, **kwargs):
        raise error

    monkeypatch.setattr(files, "hf_hub_download", download)


class TestFindFile:
    def test_in_a_folder(self, tmp_path):
        (tmp_path / "sub").mkdir()
        (tmp_path / "sub" / "a.json").touch()
        assert find_file(tmp_path, "a.json", {}) is None
        assert find_file(tmp_path, "a.json", {"subfolder": "sub"}) == tmp_path / "sub" / "a.json"
        assert find_file(tmp_path, "sub", {}) is None, "a folder is no file"

    def test_the_hub_has_no_such_file(self, monkeypatch):
        answering(monkeypatch, RemoteEntryNotFoundError("404", response=ANSWER))
        assert find_file("somebody/policy", "a.json", {}) is None

    def test_the_cache_knows_that_there_is_none(self, monkeypatch, tmp_path):
        answering(monkeypatch, LocalEntryNotFoundError("offline"))
        known = tmp_path / "models--somebody--policy" / ".no_exist" / COMMIT
        known.mkdir(parents=True)
        (known / "a.json").touch()
        assert find_file("somebody/policy", "a.json", {"revision": COMMIT, "cache_dir": str(tmp_path)}) is None

    def test_it_is_not_known(self, monkeypatch, tmp_path):
        answering(monkeypatch, LocalEntryNotFoundError("offline"))
        with pytest.raises(OSError, match=r"Whether somebody/policy has a file x/a.json is not known"):
            find_file("somebody/policy", "a.json", {"subfolder": "x", "cache_dir": str(tmp_path)})

    def test_the_hub_fails(self, monkeypatch):
        answering(monkeypatch, HfHubHTTPError("503", response=ANSWER))
        with pytest.raises(OSError, match="503"):
            find_file("somebody/policy", "a.json", {})


def test_stored_options_are_not_dropped_when_the_network_fails(tmp_path, monkeypatch):
    folder = save_policy(tmp_path)

    def failing(name, filename, location):
        if filename == "generation_config.json":
            raise OSError("the Hub cannot be reached")
        return find_file(name, filename, location)

    monkeypatch.setattr("sol_hf.hub.policy_loading.find_file", failing)
    with pytest.raises(OSError, match="the Hub cannot be reached"):
        SOLForCausalLM.from_pretrained(folder, base=tiny_base("llama"))


@pytest.mark.parametrize("name", ["gpt2", "org/name", "some-body/my.base_1"])
def test_names_of_repositories(name):
    assert hub_id(name) == name and snapshot_commit(name) is None


@pytest.mark.parametrize(
    "name",
    [
        None,
        "",
        "/models/base",
        "./base",
        "../base",
        "~/base",
        "~",
        "a/b/c",
        "C:\\base",
        "C:/base",
        "a base",
        "x" * 200,
    ],
)
def test_names_that_are_not(name):
    assert hub_id(name) is None


def test_a_folder_that_is_here_is_no_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert hub_id("org/name") is None and hub_id("org") is None and hub_id("other/name") == "other/name"


def test_paths_are_found_at_any_depth(tmp_path):
    value = {"a": str(tmp_path), "b": ["/x/y", "org/name", 3, {"c": "/z"}], "d": "a/b of text", "e": None}
    assert without_paths(value) == {"a": None, "b": [None, "org/name", 3, {"c": None}], "d": "a/b of text", "e": None}


@pytest.mark.parametrize("end", ["", "/"])
def test_a_folder_of_the_cache_is_its_repository(end):
    for repo_id, part in (("org/my--name", "org--my--name"), ("gpt2", "gpt2")):
        path = f"/home/somebody/.cache/huggingface/hub/models--{part}/snapshots/{COMMIT}{end}"
        assert (hub_id(path), snapshot_commit(path)) == (repo_id, COMMIT)
