# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The picture and the table of docs/architecture.md are what the source code says."""

import re
import runpy
from xml.etree import ElementTree

import pytest

from support.paths import ROOT
from test_architecture import ALLOWED


DRAWING = runpy.run_path(str(ROOT / "docs" / "draw_architecture.py"))
UPDATE = "Out of date: run `python docs/draw_architecture.py`."
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def package(tmp_path):
    """A made-up package: `top` imports `middle` and `low`, `middle` imports `low`."""
    for name, text in {
        "__init__": "from .top.a import x",
        "errors": "",
        "low/__init__": "",
        "low/a": "import os",
        "middle/__init__": "",
        "middle/a": "from ..low.a import x\nfrom ..errors import y",
        "middle/b": "from .a import x",
        "top/__init__": "",
        "top/a": "import sol_hf.middle.a\ndef later():\n    from ..low import a",
    }.items():
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_the_picture_is_what_the_code_says():
    assert DRAWING["PICTURE"].read_text(encoding="utf-8") == DRAWING["picture"](), UPDATE


def test_the_table_is_what_the_code_says():
    page = DRAWING["PAGE"].read_text(encoding="utf-8")
    assert page == DRAWING["with_table"](page, DRAWING["table"]()), UPDATE


def test_the_arrows_are_those_that_are_allowed():
    _, arrows = DRAWING["wings"]()
    assert arrows == {wing: set(below.split()) for wing, below in ALLOWED.items()}


def test_the_page_says_of_every_wing_what_lives_there():
    section = DRAWING["PAGE"].read_text(encoding="utf-8").split("## What lives where")[1].split("\n## ")[0]
    named = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert sorted(named) == sorted(ALLOWED)


def test_every_wing_is_drawn_and_arrows_point_down():
    tree = ElementTree.fromstring(DRAWING["picture"]())
    names = {text.text for text in tree.iter(f"{SVG}text") if text.get("class") == "name"}
    assert {name.removesuffix("/").removesuffix(".py") for name in names} == set(ALLOWED)
    paths = [path.get("d") for path in tree.iter(f"{SVG}path") if path.get("class") == "arrow"]
    assert paths
    for path in paths:
        numbers = [float(number) for number in re.findall(r"-?[\d.]+", path)]
        heights = numbers[1::2]
        assert heights == sorted(heights)


def test_imports_are_read_from_the_source(package):
    sizes, arrows = DRAWING["wings"](package)
    assert sizes == {"low": 1, "middle": 2, "top": 1}
    assert arrows == {"low": set(), "middle": {"low"}, "top": {"middle", "low"}}
    assert DRAWING["levels_of"](arrows) == {"low": 0, "middle": 1, "top": 2}
    assert DRAWING["without_implied"](arrows) == {"low": set(), "middle": {"low"}, "top": {"middle"}}


def test_an_import_more_changes_picture_and_table(package):
    before = DRAWING["picture"](package), DRAWING["table"](package)
    (package / "low" / "b.py").write_text("")
    assert DRAWING["picture"](package) != before[0]
    assert DRAWING["table"](package) != before[1]


def test_a_circle_is_an_error(package):
    (package / "low" / "a.py").write_text("from ..top.a import x")
    with pytest.raises(ValueError, match=r"circle: \['low', 'middle', 'top'\]"):
        DRAWING["picture"](package)


def test_a_page_without_marks_is_an_error():
    with pytest.raises(ValueError, match="once each"):
        DRAWING["with_table"]("no marks", "")
