# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The messages that docs/troubleshooting.md explains are messages of the package."""

import ast
import re

import pytest

from support.paths import ROOT


PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
CODE = re.compile(r"`(.+?)`")
ROW = re.compile(r"^\| (`.*?) \|", re.MULTILINE)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """All strings of the package; one with values in it is several."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "src" / "sol_hf").rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    named = [node.name for node in nodes if isinstance(node, ast.ClassDef)]
    return named + [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def test_the_page_has_messages():
    assert len(ROW.findall(PAGE)) > 25


@pytest.mark.parametrize("message", sorted({part for row in ROW.findall(PAGE) for part in CODE.findall(row)}))
def test_a_message_is_one_of_the_package(message, texts):
    assert any(message in text for text in texts)
