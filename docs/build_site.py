# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Builds the documentation as a site, in `build/docs/site`, by zensical.

    pip install '.[docs]'
    python docs/build_site.py

The pages of the repository are written to be read where they lie. Here they are copied, with these changes: a link to
a page leads to its copy, a link to another file to a page with its text, and `reference/` has all public names with
their docstrings, in the order of `docs/api.md`. A link that leads nowhere is an error.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path


ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "docs"
LINK = re.compile(r"(?<=\]\()([^)\s]+)(?=\))")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LANGUAGES = {".py": "python", ".yaml": "yaml", ".cfg": "ini", ".toml": "toml", ".json": "json", ".sh": "bash"}
PICTURES = {".png", ".svg", ".html"}
HIDDEN = "---\nsearch:\n  exclude: true\n---\n\n"
"""Begin of a page that the search leaves out."""


def pages(root: Path = ROOT) -> dict[Path, Path]:
    """Pages of the repository, and their places in the site; both are relative."""
    found = {Path("docs") / path.name: Path(path.name) for path in sorted((root / "docs").glob("*.md"))}
    found |= {card.relative_to(root): Path("cards") / f"{card.parent.name}.md" for card in cards(root)}
    return found | {
        Path("README.md"): Path("readme.md"),
        Path("CHANGELOG.md"): Path("changelog.md"),
        Path("CONTRIBUTING.md"): Path("rules.md"),
    }


def cards(root: Path) -> list[Path]:
    """Model cards."""
    return sorted((root / "model_cards").glob("*/README.md"))


class Site:
    """The pages of a site while it is put together.

    Args:
        root (`Path`): The repository.
        folder (`Path`): Where pages are written.
    """

    def __init__(self, root: Path, folder: Path):
        self.root, self.folder = root, folder
        self.places = pages(root)

    def write(self) -> None:
        """Write all pages, and what they link to."""
        for source, place in self.places.items():
            self._put(place, self._linked((self.root / source).read_text(encoding="utf-8"), source, place))
        for place, text in reference((self.root / "docs" / "api.md").read_text(encoding="utf-8")).items():
            self._put(place, text)

    def nav(self) -> list:
        """The menu: guides in the order of `docs/index.md`, then reference, cards, and the rest."""
        index = (self.root / "docs" / "index.md").read_text(encoding="utf-8")
        guides = [name for name in re.findall(r"\]\((\w+\.md)\)", index) if Path("docs") / name in self.places]
        used = ["index.md", "readme.md", *dict.fromkeys(guides)]
        groups = {"Reference": "reference", "Policies": "cards"}
        nested = {title: sorted(p.as_posix() for p in self._in(folder)) for title, folder in groups.items()}
        rest = [place.as_posix() for place in self.places.values() if place.parent == Path(".")]
        return [
            {"Guides": used},
            *({title: found} for title, found in nested.items() if found),
            {"Project": [name for name in rest if name not in used]},
        ]

    def _in(self, folder: str) -> list[Path]:
        return [path.relative_to(self.folder) for path in (self.folder / folder).glob("*.md")]

    def _put(self, place: Path, text: str) -> None:
        path = self.folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def _linked(self, text: str, source: Path, place: Path) -> str:
        """A page with its links rewritten; code is left alone."""
        parts, begin = [], 0
        for fence in FENCE.finditer(text):
            parts += [self._rewritten(text[begin : fence.start()], source, place), fence[0]]
            begin = fence.end()
        return "".join([*parts, self._rewritten(text[begin:], source, place)])

    def _rewritten(self, text: str, source: Path, place: Path) -> str:
        return LINK.sub(lambda match: self._target(match[1], source, place), text)

    def _target(self, link: str, source: Path, place: Path) -> str:
        name, _, anchor = link.partition("#")
        if not name or "://" in name or name.startswith("mailto:"):
            return link
        wanted = Path(os.path.normpath(source.parent / name))
        if not (self.root / wanted).exists():
            raise FileNotFoundError(f"{source} links to {link}, which does not exist.")
        found = self.places.get(wanted) or self._copied(wanted)
        relative = os.path.relpath(found, place.parent)
        return f"{relative}#{anchor}" if anchor else relative

    def _copied(self, wanted: Path) -> Path:
        """A file or folder that is no page, copied into the site: pictures as they are, others as a page."""
        path = self.root / wanted
        if path.suffix in PICTURES:
            (self.folder / wanted).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, self.folder / wanted)
            return wanted
        place = Path("files") / f"{wanted.as_posix()}.md"
        if path.is_dir():
            names = sorted(p.name for p in path.iterdir() if p.is_file())
            body = "\n".join(f"- `{name}`" for name in names)
        else:
            fence = "`" * 4
            body = f"{fence}{LANGUAGES.get(path.suffix, 'text')}\n{path.read_text(encoding='utf-8')}\n{fence}"
        self._put(place, f"{HIDDEN}# {wanted.as_posix()}\n\n{body}\n")
        return place


def reference(api: str) -> dict[Path, str]:
    """Pages with the docstrings of the names that `docs/api.md` has, one page for each of its sections."""
    package, made = import_module("sol_hf"), {}
    for section in re.split(r"^## ", api, flags=re.MULTILINE)[1:]:
        title = section.splitlines()[0]
        names = re.findall(r"^### `([A-Za-z]\w+)", section, re.MULTILINE)
        places = [f"{getattr(package, name).__module__}.{name}" for name in names if hasattr(package, name)]
        if places:
            text = "\n".join(f"::: {place}\n" for place in places)
            made[Path("reference") / f"{title.lower().replace(' ', '_')}.md"] = f"# {title}\n\n{text}"
    return made


def main() -> int:
    """Build the site, and return the exit code of zensical."""
    shutil.rmtree(BUILD, ignore_errors=True)
    site = Site(ROOT, BUILD / "pages")
    site.write()
    shutil.copy(ROOT / "docs" / "site.css", BUILD / "pages" / "site.css")
    settings = (ROOT / "docs" / "zensical.toml").read_text(encoding="utf-8")
    settings = settings.replace("#nav", "nav = " + json.dumps(site.nav()).replace('": ', '" = '))
    for name in ('"src"', '"docs/link_names.py"'):
        settings = settings.replace(name, json.dumps(str(ROOT / name.strip('"'))))
    (BUILD / "zensical.toml").write_text(settings, encoding="utf-8")
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--config-file", str(BUILD / "zensical.toml")]
    return subprocess.run(command, cwd=BUILD).returncode


if __name__ == "__main__":
    sys.exit(main())
