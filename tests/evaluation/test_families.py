# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Families of causal LMs: a budget is right, or refused before any compute, and a page says which."""

import re
from pathlib import Path

import pytest

from sol_hf.evaluation.families.examination import EQUAL, examine
from sol_hf.evaluation.families.page import BEGIN, END, report, table, write_page
from sol_hf.evaluation.families.sweep import (
    ALL_FAMILIES,
    EXAMINED,
    LIMIT,
    NOT_BUILT,
    read_results,
    sweep,
    try_family,
)
from sol_hf.evaluation.families.tiny_configs import family_base


PAGE = Path(__file__).parents[2] / "docs" / "supported_models.md"
ALL_AXES = ["token_keep", "mlp_keep", "bits", "neuron_keep"]
REPRESENTATIVES = {
    "mixtral": ALL_AXES,
    "gpt_oss": ALL_AXES,
    "opt": ALL_AXES,
    "bert": ALL_AXES,
    "bloom": ALL_AXES[1:],
}
"""Experts; sinks and experts with biases; projections of the layer; of two modules; an MLP that adds the residual."""
SAMPLE = """gemma2 gemma4_text granitemoeshared nemotron_h nanochat llama4 qwen3_next deepseek_v3 moshi
    minimax_m3_vl_text internvl""".split()
RESULT = {
    "status": EXAMINED, "transformers": "5", "model": "AForCausalLM", "axes": ["bits"], "faults": [], "late": [],
    "layers": {"bits": [0]}, "layer_count": 2, "kv_refresh": True, "rows": EQUAL,
    "keys": "not compared", "mlps": EQUAL,
    "reasons": {"token_keep": "The axis `token_keep` cannot be controlled on AForCausalLM: no | reason."},
}  # fmt: skip


@pytest.mark.parametrize("family", REPRESENTATIVES)
def test_steps_are_those_of_the_base_with_masks_and_hooks(family):
    found = examine(family_base(family))
    assert not found.faults and found.axes == REPRESENTATIVES[family] and found.mlps == EQUAL
    assert found.keys == (EQUAL if "token_keep" in found.axes else "not compared")


def test_a_base_for_a_terminal():
    found = {**RESULT, "kv_refresh": False, "late": ["bits: not now"], "faults": ["mlp_keep: KeyError: 3"]}
    assert report("AForCausalLM in bfloat16", found).splitlines() == [
        "AForCausalLM in bfloat16, 2 decoder layers",
        "token_keep   – The axis `token_keep` cannot be controlled on AForCausalLM: no | reason.",
        "mlp_keep     – does not work, see below",
        "bits         1 of 2 layers: 0",
        "neuron_keep  – does not work, see below",
        "KV refresh   no: pass `kv_refresh=False`",
        "refused in the first forwards: bits: not now",
        "FAULT: mlp_keep: KeyError: 3",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("family", SAMPLE)
def test_a_sample_of_families_is_as_the_page_says(family):
    result = try_family(family)
    assert result["status"] == EXAMINED and not result["faults"]
    line = next(line for line in PAGE.read_text().splitlines() if line.startswith(f"| `{family}` |"))
    reached = [f"{len(result['layers'].get(axis, ()))} of {result['layer_count']}" for axis in ALL_AXES]
    assert line.split(" | ")[1:5] == [cell if not cell.startswith("0 ") else "–" for cell in reached]


class TestThePage:
    def test_it_has_every_family_and_no_faults(self):
        generated = PAGE.read_text().split(BEGIN)[1].split(END)[0]
        listed = set(re.findall(r"`([^`]+)`", generated))
        assert not [family for family in ALL_FAMILIES if family not in listed]
        all_three, two = map(int, re.search(r"(\d+) families have all, (\d+) two or", generated).groups())
        assert all_three >= 100 and two >= 120 and "Families with a fault: 0." in generated

    def test_a_fault_is_shown_and_does_not_count(self, tmp_path):
        broken = {**RESULT, "axes": ALL_AXES[:3], "layers": dict.fromkeys(ALL_AXES, [0]), "faults": ["rows | differ"]}
        page = tmp_path / "page.md"
        page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
        write_page(page, {"a": RESULT, "b": broken, "c": {"status": NOT_BUILT, "transformers": "5", "reason": "no"}})
        text = page.read_text()
        assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
        assert "0 families have all, 0 two or more,\nand 1 one or more. Families with a fault: 1." in text
        assert "| `b` | rows \\| differ |" in text and "| no \\| reason | `token_keep`: `a`, `b` |" in text
        assert "| `c` | not built: no |" in text and "| `a` | – | – | 1 of 2 | – | yes | equal | hooked |" in text

    def test_a_page_without_a_place_for_the_table_is_not_touched(self, tmp_path):
        page = tmp_path / "page.md"
        page.write_text("mine\n")
        with pytest.raises(ValueError, match="has no lines"):
            write_page(page, {"a": RESULT})
        assert page.read_text() == "mine\n" and "`a`" in table({"a": RESULT})


class TestSweep:
    def test_it_goes_on_where_it_was_interrupted(self, tmp_path):
        families = ("prophetnet", "musicgen")
        (first,) = sweep(tmp_path, families[:1])
        (second,) = sweep(tmp_path, families)
        assert [first["family"], second["family"]] == [*families] and first["status"] == NOT_BUILT
        assert list(read_results(tmp_path)) == sorted(families) and list(sweep(tmp_path, families)) == []

    def test_a_family_that_takes_too_long_is_ended(self, tmp_path):
        (result,) = sweep(tmp_path, ["llama"], most_seconds=0.01)
        assert result["status"] == LIMIT

    def test_results_of_two_versions_are_not_mixed(self, tmp_path):
        for name, version in (("a", "5"), ("b", "6")):
            (tmp_path / f"{name}.json").write_text(f'{{"transformers": "{version}"}}')
        with pytest.raises(ValueError, match="2 versions of transformers"):
            read_results(tmp_path)
