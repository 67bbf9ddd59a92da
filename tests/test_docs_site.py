# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The documentation as a site: links lead to copies, and it builds without a warning."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from support.paths import ROOT


SITE = runpy.run_path(str(ROOT / "docs" / "build_site.py"))


@pytest.fixture
def repository(tmp_path):
    """A made-up repository: two pages, a file, a picture."""
    for name, text in {
        "README.md": "[a](docs/a.md#b) and [code](src/x.py), [web](https://example.com/x.md)\n\n```text\n[a](docs/a.md)\n```",
        "docs/a.md": "[home](../README.md) ![picture](pictures/p.png) [folder](../src)",
        "docs/index.md": "| [A](a.md) |",
        "docs/api.md": "## Errors\n\n### `BudgetError`\n",
        "CHANGELOG.md": "",
        "CONTRIBUTING.md": "",
        "src/x.py": "x = 1",
        "docs/pictures/p.png": "",
    }.items():
        path = tmp_path / "repository" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "repository"


@pytest.fixture
def staged(repository, tmp_path):
    """The pages of the site of the made-up repository."""
    site = SITE["Site"](repository, tmp_path / "pages")
    site.write()
    return site


def test_links_lead_to_the_copies(staged):
    page = (staged.folder / "readme.md").read_text()
    assert "[a](a.md#b)" in page and "[code](files/src/x.py.md)" in page and "(https://example.com/x.md)" in page
    assert "[home](readme.md)" in (staged.folder / "a.md").read_text()


def test_code_of_a_page_is_left_alone(staged):
    assert "```text\n[a](docs/a.md)\n```" in (staged.folder / "readme.md").read_text()


def test_what_is_no_page_comes_along(staged):
    assert "x = 1" in (staged.folder / "files/src/x.py.md").read_text()
    assert "- `x.py`" in (staged.folder / "files/src.md").read_text()
    assert (staged.folder / "docs/pictures/p.png").exists()


def test_public_names_have_a_page_with_their_docstrings(staged):
    assert "::: sol_hf.errors.BudgetError" in (staged.folder / "reference/errors.md").read_text()


def test_the_menu_follows_the_index(staged):
    guides, reference, project = staged.nav()
    assert guides == {"Guides": ["index.md", "readme.md", "a.md"]}
    assert reference == {"Reference": ["reference/errors.md"]}
    assert project == {"Project": ["api.md", "changelog.md", "rules.md"]}


def test_a_link_that_leads_nowhere_is_an_error(repository, tmp_path):
    (repository / "docs" / "a.md").write_text("[gone](../src/gone.py)")
    with pytest.raises(FileNotFoundError, match=r"docs/a.md links to \.\./src/gone.py"):
        SITE["Site"](repository, tmp_path / "pages").write()


def test_the_picture_of_a_step_is_what_its_script_draws():
    drawn = runpy.run_path(str(ROOT / "docs" / "draw_how_it_works.py"))
    assert drawn["PICTURE"].read_text(encoding="utf-8") == drawn["picture"]()


@pytest.mark.slow
def test_the_site_builds_without_warnings_and_its_links_exist():
    built = subprocess.run([sys.executable, "docs/build_site.py"], cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0 and "No issues found" in built.stderr, built.stderr[-2000:]
    site = ROOT / "build" / "docs" / "site"
    pages = list(site.rglob("*.html"))
    assert {"index.html", "quicktour.html", "model.html", "training.html"} <= {page.name for page in pages}
    assert not [f"{page.name}: {link}" for page in pages for link in dead_links(page)]


def dead_links(page: Path) -> list[str]:
    """Links within the site that lead to no file or to no place of it."""
    dead = []
    for link in re.findall(r'(?:href|src)="([^"]+)"', page.read_text(encoding="utf-8")):
        name, _, anchor = link.partition("#")
        if "://" in name or name.startswith(("mailto:", "data:", "/")) or name.rstrip("/") in {".", ".."}:
            continue
        target = page if not name else (page.parent / name)
        if not target.exists():
            dead.append(link)
        elif anchor and target.suffix == ".html" and f'id="{anchor}"' not in target.read_text(encoding="utf-8"):
            dead.append(link)
    return dead
