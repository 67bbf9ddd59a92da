# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The shape of the package: which wing may import from which, sizes of modules and functions, no host round trips.

A wing is a folder of `src/sol_hf`, or a module at its top. An arrow is an import from another wing. Imports are read
from the source, including those within functions and those for type checkers only.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import sol_hf
from support.paths import TESTS


SOURCE = Path(sol_hf.__file__).parent
MODULES = sorted(path.relative_to(SOURCE).with_suffix("").as_posix() for path in SOURCE.rglob("*.py"))

GROUND = {"errors", "registry", "version"}
"""What every wing may import from."""
ALLOWED = {
    "budget": "",
    "selection": "",
    "stored": "",
    "kernels": "selection",
    "cache": "budget selection kernels",
    "policy": "budget kernels",
    "configuration_sol": "budget selection stored",
    "modeling_sol_policy": "budget stored policy configuration_sol",
    "controllers": "budget selection policy modeling_sol_policy",
    "execution": "budget selection kernels cache",
    "hub": "budget stored configuration_sol modeling_sol_policy",
    "decoding": "budget selection cache configuration_sol modeling_sol_policy controllers execution",
    "costs": "budget selection cache configuration_sol controllers execution decoding",
    "modeling_sol": "budget cache configuration_sol modeling_sol_policy controllers execution hub decoding costs",
    "episodes": "budget selection stored cache modeling_sol_policy controllers execution decoding modeling_sol",
    "evaluation": "budget stored cache configuration_sol controllers execution hub decoding costs "
    "modeling_sol episodes",
    "integrations": "budget selection stored configuration_sol modeling_sol_policy controllers hub decoding costs "
    "modeling_sol",
    "training": "budget stored modeling_sol_policy controllers execution hub modeling_sol episodes evaluation",
    "figures": "budget controllers modeling_sol episodes evaluation",
    "serving": "budget cache configuration_sol controllers decoding costs modeling_sol",
    "cli": "budget configuration_sol controllers decoding stored modeling_sol episodes evaluation integrations "
    "figures training serving",
}
"""For every wing, those that it may import from; all of them are above it in this list."""
FACE = "__init__"
MOST_FILES_AT_THE_TOP = 8

STEP_WINGS = ("selection", "cache", "policy", "controllers", "execution", "decoding/step", "kernels/cuda")
"""Files and folders that a decode step runs, in which no value may be copied to the host."""
FOR_EXTRAS = {"datasets", "evaluate", "lm_eval", "matplotlib", "peft", "tqdm", "trl"}
"""Packages that decoding does not import; transformers may load some of them."""

LONGEST_MODULE, LONGEST_FUNCTION = 400, 60
HEADER = ["# SPDX-FileCopyrightText: 2026 The sol_hf authors", "# SPDX-License-Identifier: Apache-2.0"]


def text(module: str) -> str:
    return (SOURCE / f"{module}.py").read_text(encoding="utf-8")


def wing_of(module: str) -> str:
    return module.split("/")[0]


def imported(module: str) -> Iterator[tuple[int, list[str]]]:
    """Level and dotted names of everything that a module imports, at its top or later."""
    for node in ast.walk(ast.parse(text(module))):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            path = node.module.split(".") if node.module else []
            yield from ((node.level, [*path, alias.name]) for alias in node.names)


def imported_modules(module: str) -> set[str]:
    """Modules of the package that a module imports."""
    found = set()
    for level, names in imported(module):
        if level:
            names = [*module.split("/")[:-level], *names]
        elif names[0] != "sol_hf":
            continue
        else:
            names = names[1:]
        whole, parent = "/".join(names), "/".join(names[:-1])
        found |= {name for name in (whole, parent) if name in MODULES} or {FACE}
    return found


def imported_packages(module: str) -> set[str]:
    """Packages from elsewhere that a module imports."""
    return {names[0] for level, names in imported(module) if not level}


def loaded_with(module: str) -> set[str]:
    """A module, and all modules of the package that it imports, directly or not, except for lazy exports."""
    seen, ahead = set(), [module]
    while ahead:
        name = ahead.pop()
        if name not in seen:
            seen.add(name)
            ahead += imported_modules(name) if name != FACE else eager_imports()
    return seen


def eager_imports() -> list[str]:
    """Modules that the package's face imports when it is imported."""
    tree = ast.parse(text(FACE))
    return [node.module.replace(".", "/") for node in tree.body if isinstance(node, ast.ImportFrom) and node.level]


def test_every_wing_is_listed_and_arrows_go_down():
    wings = {wing_of(module) for module in MODULES} - GROUND - {FACE}
    assert sorted(ALLOWED) == sorted(wings)
    names = list(ALLOWED)
    assert [
        (wing, below)
        for wing, allowed in ALLOWED.items()
        for below in allowed.split()
        if names.index(below) >= names.index(wing)
    ] == []


@pytest.mark.parametrize("module", [module for module in MODULES if wing_of(module) in ALLOWED])
def test_a_module_imports_only_from_allowed_wings(module):
    wing = wing_of(module)
    wings = {wing_of(name) for name in imported_modules(module)} - {wing}
    assert wings - GROUND - set(ALLOWED[wing].split()) == set()


@pytest.mark.parametrize("module", sorted(GROUND))
def test_the_ground_imports_nothing(module):
    assert imported_modules(module) == set()


@pytest.mark.parametrize("wing", ALLOWED)
def test_an_allowed_arrow_is_used(wing):
    """Unused arrows have to be removed from the list."""
    used = {wing_of(name) for module in MODULES if wing_of(module) == wing for name in imported_modules(module)}
    assert set(ALLOWED[wing].split()) - used == set()


def test_no_circle_of_imports():
    """Modules can be put in an order in which each imports from earlier ones only."""
    left = {module: imported_modules(module) - {module, FACE} for module in MODULES if module != FACE}
    while free := [module for module, needs in left.items() if not needs & left.keys()]:
        left = {module: needs for module, needs in left.items() if module not in free}
    assert left == {}


def test_few_files_at_the_top():
    files = [path for path in SOURCE.iterdir() if path.is_file()]
    assert len(files) <= MOST_FILES_AT_THE_TOP


@pytest.mark.parametrize("module", [module for module in MODULES if module.endswith("/__init__")])
def test_a_wing_says_what_lives_there_and_what_may_not(module):
    tree = ast.parse(text(module))
    assert len(tree.body) == 1
    assert len(ast.get_docstring(tree).splitlines()) == 3


def test_the_imports_are_seen():
    assert {"cache/sol_cache", "selection/rule"} <= imported_modules("execution/plan")
    assert "hub/saving" in imported_modules("modeling_sol")
    assert "modeling_sol" not in imported_modules("hub/saving")
    assert "kernels/cuda/pages" in imported_modules("cache/paged_layer")


@pytest.mark.parametrize("module", sorted(loaded_with(FACE)))
def test_what_a_bare_import_loads_needs_no_extra(module):
    assert module == FACE or imported_packages(module) & FOR_EXTRAS == set()


def test_packages_of_extras_are_seen():
    assert "tqdm" in imported_packages("episodes/block_runner")
    assert "trl" in imported_packages("training/grpo_trainer")


@pytest.mark.parametrize("module", MODULES)
def test_no_module_is_too_long(module):
    assert len(text(module).splitlines()) <= LONGEST_MODULE


@pytest.mark.parametrize("module", MODULES)
def test_no_function_is_too_long(module):
    """Lines of a function, its docstring not counted."""
    lengths = {}
    for node in ast.walk(ast.parse(text(module))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            documented = ast.get_docstring(node) is not None
            described = first.end_lineno - first.lineno + 1 if documented else 0
            lengths[node.name] = node.end_lineno - node.lineno + 1 - described
    assert {name: length for name, length in lengths.items() if length > LONGEST_FUNCTION} == {}


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith(STEP_WINGS)])
def test_no_step_brings_a_value_to_the_host(module):
    calls = [
        node.lineno
        for node in ast.walk(ast.parse(text(module)))
        if isinstance(node, ast.Attribute) and node.attr == "item"
    ]
    assert calls == []


@pytest.mark.parametrize("module", MODULES)
def test_every_module_begins_with_its_licence_and_says_what_it_is(module):
    assert text(module).splitlines()[:2] == HEADER
    assert ast.get_docstring(ast.parse(text(module)))


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: str(path.relative_to(TESTS)))
def test_every_test_file_begins_with_its_licence(path):
    assert path.read_text(encoding="utf-8").splitlines()[:2] == HEADER


def test_tests_mirror_the_wings():
    folders = {path.name for path in TESTS.iterdir() if path.is_dir() and not path.name.startswith((".", "__"))}
    assert folders - {"data", "support", "examples", "fuzz", "reliability"} <= set(ALLOWED)
