# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A card states the licence that the card of the base states, and none if that is not known."""

import pytest

from sol_hf import SOLConfig
from sol_hf.hub import base_license as module
from sol_hf.hub.base_license import base_license
from sol_hf.hub.model_card import build_card


def write_card(folder, head: str) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "README.md").write_text(f"---\n{head}\n---\n# A base\n")
    return str(folder)


def test_the_licence_of_a_local_base(tmp_path):
    assert base_license(write_card(tmp_path, "license: mit")) == {"license": "mit"}


def test_a_licence_with_a_name_of_its_own(tmp_path):
    head = "license: other\nlicense_name: our-terms\nlicense_link: LICENSE"
    base = write_card(tmp_path, head)
    assert base_license(base) == {"license": "other", "license_name": "our-terms", "license_link": "LICENSE"}
    card = build_card(SOLConfig(base_model_name_or_path=base))
    assert card.data.to_dict()["license_name"] == "our-terms" and "license `our-terms`" in card.text


@pytest.mark.parametrize("head", ["tags: [a]", "license: [1, 2]", "license: {", ""])
def test_no_licence_is_claimed_that_no_card_states(tmp_path, head):
    base = write_card(tmp_path, head)
    card = build_card(SOLConfig(base_model_name_or_path=base))
    assert "license" not in card.data.to_dict() and "apache" not in card.content.lower()
    assert "The license of the base is not known here" in card.text


@pytest.mark.parametrize("base", [None, "somebody/absent-base", "not an id!"])
def test_without_a_card_there_is_none(base):
    assert base_license(base) == {} == base_license(base, ask_hub=True)
    assert "license" not in build_card(SOLConfig(base_model_name_or_path=base)).data.to_dict()


def test_a_card_in_the_cache_needs_no_network(tmp_path, monkeypatch):
    card = write_card(tmp_path, "license: gemma") + "/README.md"
    asked = []
    monkeypatch.setattr(module, "try_to_load_from_cache", lambda *args, **kwargs: asked.append((args, kwargs)) or card)
    assert base_license("google/gemma", "abc") == {"license": "gemma"}
    assert asked == [(("google/gemma", "README.md"), {"revision": "abc"})]


def test_pushing_asks_the_hub(tmp_path, monkeypatch):
    card = write_card(tmp_path, "license: llama3") + "/README.md"
    monkeypatch.setattr(module, "hf_hub_download", lambda *args, **kwargs: card)
    config = SOLConfig(base_model_name_or_path="meta/llama")
    assert build_card(config, ask_hub=True).data.license == "llama3"
    assert "license" not in build_card(config).data.to_dict()
