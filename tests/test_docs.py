# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The code of the pages runs, the pages are complete, and their links exist.

Every Python block of a page is executed, all blocks of a page in one namespace, in an empty folder. Where a page loads
a real model or the shipped policy, the text that names it is replaced by the path of a tiny one: see `SUBSTITUTES`.
"""

import contextlib
import dataclasses
import importlib
import inspect
import io
import re
import runpy
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

import sol_hf
from sol_hf import SOLConfig, SOLForCausalLM
from sol_hf.budget.axes import AXES
from sol_hf.controllers.registry import CONTROLLERS
from sol_hf.decoding.option_names import STORED_DEFAULTS
from support.bases import FAMILIES
from support.paths import ROOT


PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "skills").glob("*/SKILL.md")])
LINKING = [
    *PAGES,
    ROOT / "AGENTS.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "examples" / "README.md",
]
SUBSTITUTES = ("fetch_smollm2()", '"HuggingFaceTB/SmolLM2-135M-Instruct"')
POLICY = '"model_cards/sol-smollm2-135m"'
REGISTRIES = (AXES, CONTROLLERS)
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
ENTRY = re.compile(r"^### `(\w+)(?:\((.*)\))?`\n\n\[\w+\.py\]\(\.\./(src/\S+?)\)([\s\S]*?)(?=^##|\Z)", re.MULTILINE)
UNEXPORTED = re.compile(r"^\| `([\w.]+)\.(\w+)\((.*?)\)` \|", re.MULTILINE)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(page: Path) -> list[tuple[int, str]]:
    """Line and code of every Python block of a page."""
    text = page.read_text(encoding="utf-8")
    return [(text.count("\n", 0, match.start(1)), match.group(1)) for match in BLOCK.finditer(text)]


def anchors(page: Path) -> set[str]:
    """What `#...` can name in a page."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def assert_blocks_run(page: Path, replacements: dict[str, str]) -> str:
    """Execute the Python blocks of a page, none of which may fail, and return what they printed."""
    namespace: dict = {"__name__": "__page__"}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for line, code in blocks(page):
            for text, replacement in replacements.items():
                code = code.replace(text, replacement)
            exec(compile("\n" * line + code, str(page), "exec"), namespace)
    return printed.getvalue()


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory) -> Path:
    """A tiny Llama and its tokenizer, saved: what `examples/generate.py --tiny` takes."""
    folder = tmp_path_factory.mktemp("tiny")
    example = runpy.run_path(str(ROOT / "examples" / "generate.py"))
    tokenizer = example["tiny_tokenizer"]()
    tokenizer.save_pretrained(folder)
    example["tiny_base"](tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tiny_policy(tiny_folder, tmp_path_factory) -> Path:
    """A policy for it, saved, with a calibration table."""
    folder = tmp_path_factory.mktemp("policy")
    table = [dict(net_keep=0.5, token_keep=0.4, mlp_keep=0.6, bits=8, log_perplexity=3.0)]
    base = AutoModelForCausalLM.from_pretrained(tiny_folder)
    SOLForCausalLM.from_base(base, SOLConfig(calibration=table)).save_pretrained(folder)
    return folder


@pytest.fixture
def _no_new_names():
    """Takes names out of the registries again that a page puts in."""
    before = [set(registry) for registry in REGISTRIES]
    yield
    for registry, names in zip(REGISTRIES, before, strict=True):
        for name in set(registry) - names:
            registry.unregister(name)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=name_of)
@pytest.mark.usefixtures("_no_new_names")
def test_python_blocks_run(page, tiny_folder, tiny_policy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_blocks_run(page, dict.fromkeys(SUBSTITUTES, repr(str(tiny_folder))) | {POLICY: repr(str(tiny_policy))})


def test_the_pages_with_blocks_are_found():
    assert {"README.md", "docs/architecture.md", "docs/quicktour.md"} <= {
        name_of(page) for page in PAGES if blocks(page)
    }


@pytest.mark.slow
def test_the_readme_shows_what_its_first_block_prints(monkeypatch):
    monkeypatch.chdir(ROOT)  # the block names the folder of the shipped policy
    monkeypatch.setitem(STORED_DEFAULTS, "backend", "reference")  # fast paths differ in the last bits, then in words
    _, code = blocks(ROOT / "README.md")[0]
    shown = re.search(r"^prints\n\n```text\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {})
    (found, spent), (words, told) = (_text_and_numbers(text) for text in (printed.getvalue(), shown.group(1)))
    assert found.split(",")[0] == words.split(",")[0]  # rounding differs between processors, later words with it
    ratios = [[x / dense for x, dense in zip(numbers, (1, 1, 16), strict=True)] for numbers in (spent, told)]
    assert ratios[0] == pytest.approx(ratios[1], abs=0.03)
    assert all(sum(own) / 3 == pytest.approx(0.7, abs=0.015) for own in ratios)


def _text_and_numbers(line):
    """What the first block prints, as a text and the numbers after it."""
    text, numbers = re.fullmatch(r"(.*) tensor\(\[\[(.*)\]\]\)\n", line, re.DOTALL).groups()
    return text, [float(x) for x in numbers.split(",")]


class TestApi:
    """docs/api.md against the package."""

    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    entries = {match[1]: match for match in ENTRY.finditer(text)}

    @staticmethod
    def parameters(arguments, module):
        """Parameters as they are written, with the names of a module for defaults."""
        return inspect.signature(eval(f"lambda {arguments}: None", vars(module))).parameters

    def test_has_an_entry_for_every_export_and_no_other(self):
        assert sorted(self.entries) == sorted(sol_hf.__all__)

    @pytest.mark.parametrize("name", [name for name in sol_hf.__all__ if name != "__version__"])
    def test_entry_names_file_and_arguments(self, name):
        exported = getattr(sol_hf, name)
        _, arguments, path, _ = self.entries[name].groups()
        module = sys.modules[exported.__module__]
        assert (ROOT / path).samefile(module.__file__)
        if arguments is not None:
            documented, actual = self.parameters(arguments, module), inspect.signature(exported).parameters
            assert list(documented) == list(actual)
            if name not in ("ActionProcessorList", "SOLForCausalLM"):
                assert [p.default for p in documented.values()] == [p.default for p in actual.values()]

    @pytest.mark.parametrize("name", [name for name in sol_hf.__all__ if name != "__version__"])
    def test_entry_names_arguments_or_fields(self, name):
        exported = getattr(sol_hf, name)
        _, arguments, _, text = self.entries[name].groups()
        if arguments is None and dataclasses.is_dataclass(exported):
            fields = {field.name for field in dataclasses.fields(exported)} & set(inspect.get_annotations(exported))
            assert fields and [field for field in sorted(fields) if f"`{field}`" not in text] == []
        else:
            assert arguments is not None or issubclass(exported, Exception)

    @pytest.mark.parametrize("module, name, arguments", UNEXPORTED.findall(text))
    def test_what_is_not_exported_names_its_arguments(self, module, name, arguments):
        found = importlib.import_module(f"sol_hf.{module}")
        documented = self.parameters(arguments, found)
        actual = inspect.signature(getattr(found, name)).parameters
        assert [(p.name, p.default) for p in documented.values()] == [(p.name, p.default) for p in actual.values()]
        assert name not in sol_hf.__all__

    @pytest.mark.parametrize(
        "owner, method",
        [("SOLForCausalLM", name) for name in ("from_base", "from_pretrained", "generate", "score", "new_cache")]
        + [("SOLGRPOTrainer", name) for name in ("evaluate", "roll_out")],
    )
    def test_methods_name_their_arguments(self, owner, method):
        arguments = re.search(rf"^\| `{method}\((.*?)\)` \|", self.entries[owner][4], re.MULTILINE)[1]
        documented = self.parameters(arguments, sol_hf)
        actual = inspect.signature(getattr(getattr(sol_hf, owner), method)).parameters
        assert [(p.name, p.default) for p in documented.values()] == [
            (p.name, p.default) for p in actual.values() if p.name != "self"
        ]


def test_supported_models_names_every_tested_family():
    text = (ROOT / "docs" / "supported_models.md").read_text(encoding="utf-8").split("## What was found")[0]
    assert re.findall(r"^\| .* \| `(\w+)` \|", text, re.MULTILINE) == ["model_type", *FAMILIES]


@pytest.mark.parametrize("page", LINKING, ids=name_of)
def test_relative_links_resolve(page):
    broken = []
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", LINKING, ids=name_of)
def test_files_of_the_repository_that_are_named_exist(page):
    named = re.findall(r"\b(?:tests|examples|docs)/[\w/.-]+\.(?:py|yaml|txt)\b", page.read_text(encoding="utf-8"))
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_agents_stays_short():
    assert len((ROOT / "AGENTS.md").read_text(encoding="utf-8").splitlines()) < 60
