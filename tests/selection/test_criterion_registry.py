# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Criteria as objects: their attributes, and that no other module compares their names."""

import ast
from pathlib import Path

import pytest
import torch

import sol_hf
from sol_hf.selection.candidates import Candidates
from sol_hf.selection.criterion import CRITERIA, Criterion, SelectionCost, register_criterion
from sol_hf.selection.rule import Selection, SelectionRule
from support.extra_criterion import LongKeys, registered


SOURCE = Path(sol_hf.__file__).parent


def test_the_criteria_of_the_folder_are_registered_under_their_names():
    folder = SOURCE / "selection" / "criteria"
    assert sorted(CRITERIA) == sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
    assert {"quest", "relevancy", "recency"} <= set(CRITERIA)


def test_a_class_in_place_of_an_instance_is_refused():
    with pytest.raises(TypeError, match="A criterion is an instance of `Criterion`, got <class"):
        register_criterion("mine", LongKeys)
    assert "mine" not in CRITERIA


def test_a_taken_name_is_refused():
    with pytest.raises(ValueError, match="'quest'.*choose another name"):
        register_criterion("quest", LongKeys())


def compared_names(path: Path) -> list[int]:
    """Lines of a module that compare with the name of a criterion."""
    names, lines = set(CRITERIA), []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Compare):
            values = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
            lines += [node.lineno] if values & names else []
        elif isinstance(node, ast.Dict):
            keys = {key.value for key in node.keys if isinstance(key, ast.Constant)}
            lines += [node.lineno] if keys & names else []
        elif isinstance(node, ast.MatchValue) and isinstance(node.value, ast.Constant):
            lines += [node.value.lineno] if node.value.value in names else []
    return lines


def test_nothing_else_compares_names_of_criteria(tmp_path):
    found = {
        path.relative_to(SOURCE).as_posix(): lines
        for path in SOURCE.rglob("*.py")
        if "criteria" not in path.parts and (lines := compared_names(path))
    }
    assert found == {}
    (tmp_path / "module.py").write_text('if rule.criterion in ("quest", "mine"):\n    pass\nx = {"recency": 1}\n')
    assert compared_names(tmp_path / "module.py") == [1, 3]


def test_what_the_criteria_say_of_themselves():
    facts = {name: (c.chooses_pages, c.has_kernels, c.heads_may_differ) for name, c in CRITERIA.items()}
    assert facts == {
        "quest": (True, True, True),
        "relevancy": (False, False, True),
        "recency": (False, False, False),
        "sketch": (False, False, True),
    }
    with registered("mine", LongKeys()):
        assert CRITERIA["mine"].chooses_pages is CRITERIA["mine"].has_kernels is False


@pytest.mark.parametrize(
    ("name", "keep", "expected"),
    [
        ("quest", 0.2, SelectionCost(24, moved=24 * 3 + 13, scored=26)),
        ("quest", 1.0, SelectionCost(100, moved=100)),
        ("relevancy", 0.1, SelectionCost(18, moved=(100 + 18 * 3) / 2, scored=82)),
        ("relevancy", 1.0, SelectionCost(100, moved=100)),
        ("recency", 0.1, SelectionCost(17, moved=17)),
        ("mine", 0.2, SelectionCost(20, moved=20)),
    ],
)
def test_what_a_selection_costs(name, keep, expected):
    with registered("mine", LongKeys()):
        assert CRITERIA[name].cost(SelectionRule(name), keep, keys=100, group=3) == expected


def test_a_group_that_chooses_together_moves_less():
    rule = SelectionRule(selection="group")
    assert CRITERIA["quest"].cost(rule, 0.2, keys=100, group=3).moved == 24 + 13


@pytest.mark.parametrize(("keep", "keys", "expected"), [(0.5, 9, 5), (0.2, 5, 1), (0.6, 50, 30), (0.01, 3, 1)])
def test_keys_read_by_default(keep, keys, expected):
    assert Criterion().keys_read(SelectionRule(), keep, keys) == expected


def test_slots_and_mask_of_a_selection():
    """Ranks count from the row's page 0; those that name no key of the row are left out."""
    keys = torch.zeros(2, 1, 5, 2)
    candidates = Candidates(torch.zeros(2, 1, 2, 2), keys, torch.tensor([1, -2]), torch.tensor([1, 1]), page_size=4)
    ranks = torch.tensor([[[0, 3, 4, 1]], [[2, 3, 6, 6]]])
    in_use = torch.tensor([[[True, True, True, False]], [[True, True, True, False]]])
    slot, read = candidates.slots_of(Selection(ranks, in_use))
    assert slot.tolist() == [[[1, 4, 5, 2]], [[0, 1, 4, 4]]]
    assert read.tolist() == [[[True, True, False, False]], [[False, True, True, False]]]
    mask = candidates.mask_of(Selection(ranks, in_use))
    assert mask.int().tolist() == [[[0, 1, 0, 0, 1]], [[0, 1, 0, 0, 1]]]
