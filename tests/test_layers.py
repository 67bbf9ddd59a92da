# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The shape of the package: import directions, sizes of modules and functions, no host round trips in a step."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import sol_hf


SOURCE = Path(sol_hf.__file__).parent
MODULES = sorted(path.relative_to(SOURCE).with_suffix("").as_posix() for path in SOURCE.rglob("*.py"))
ORDER = """
    version smollm2 text_blocks actions calibration rewards activations ledger row_ends window_layer
    crossover criteria kernels/__init__ kernels/triton_support kernels/triton_select kernels/triton_pages
    kernels/triton_attention kernels/triton_chunk kernels/triton_mlp kernels/triton_norm paged_layer
    kernels/triton_paged kernels/native_threads
    kernels/compiled_memory kernels/vectors kernels/numba_attention kernels/paged_attention kernels/numba_mlp
    kernels/sparse_mlp
    kernels/numba_linear kernels/few_lines kernels/numba_packed_attention kernels/packed_attention
    mlp_parts mlp_copy input_major_mlp triton_mlp_copy int8_mlp shared_prefix configuration_sol outputs
    cache step_plan policy_heads modeling_sol_policy attention_paths attention elastic elastic_mlp
    step_part step_linear step_norm
    controllers baseline_controllers controller_names loading hub
    processors captured_forward decoding instrumentation options scoring
    modeling_sol rollouts counterfactuals measurements block_play evaluation lm_eval_spending lm_eval_adapter
    metrics
    cost_model lessons counterfactual_warmup
    oracle compute_costs contestants fronts sweep_table sweep_folder sweep_rows sweep_play sweep_progress
    pareto pareto_summary evaluation_inputs calibration_file
    pollution action_map plot_style sweep_points plots pollution_figure text_figure
    grpo_config checkpoints sharding training_metrics grpo_trainer cli __init__
""".split()
"""A module imports only from modules to its left."""

STEP_MODULES = """
    decoding attention attention_paths criteria shared_prefix activations elastic elastic_mlp controllers
    baseline_controllers processors ledger paged_layer window_layer policy_heads
    captured_forward triton_mlp_copy kernels/triton_select kernels/triton_pages kernels/triton_attention
    kernels/triton_mlp kernels/triton_paged kernels/triton_chunk kernels/triton_norm step_plan step_norm
""".split()
FOR_TRAINING = {"accelerate", "datasets", "evaluate", "lm_eval", "matplotlib", "peft", "tqdm", "trl"}
"""Packages that decoding does without, though transformers may load some of them."""

LONGEST_MODULE, LONGEST_FUNCTION = 400, 60
HEADER = ["# SPDX-FileCopyrightText: 2026 The sol_hf authors", "# SPDX-License-Identifier: Apache-2.0"]


def text(module: str) -> str:
    return (SOURCE / f"{module}.py").read_text(encoding="utf-8")


def is_for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def executed(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below `node`, those inside functions too, but none that only a type checker sees."""
    for child in ast.iter_child_nodes(node):
        if not is_for_types_only(child):
            yield child
            yield from executed(child)


def imported_modules(module: str) -> set[str]:
    """Modules of the package that a module imports, at its top or later."""
    package = ["sol_hf", *module.split("/")[:-1]]
    names = set()
    for node in executed(ast.parse(text(module))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            path = ".".join([*base, *([node.module] if node.module else [])])
            names |= {path} | {f"{path}.{alias.name}" for alias in node.names}
    inside = {name.removeprefix("sol_hf.").replace(".", "/") for name in names if name.startswith("sol_hf.")}
    found = inside & set(MODULES)
    return found | ({"__init__"} if "sol_hf" in names and not inside else set())


def imported_packages(module: str) -> set[str]:
    """Packages from elsewhere that a module imports, at its top or later."""
    names = set()
    for node in executed(ast.parse(text(module))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module)
    return {name.split(".")[0] for name in names}


def loaded_with(module: str) -> set[str]:
    """A module, and those of the package that it imports, directly or not."""
    return {module}.union(*(loaded_with(name) for name in imported_modules(module)))


def test_the_order_names_every_module_once():
    assert sorted(ORDER) == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_modules_before_it(module):
    late = {name for name in imported_modules(module) if ORDER.index(name) >= ORDER.index(module)}
    assert late == set()


def test_the_imports_are_seen():
    assert {"actions", "cache", "criteria"} <= imported_modules("step_plan")
    assert "hub" in imported_modules("modeling_sol")
    assert "modeling_sol" not in imported_modules("hub")


@pytest.mark.parametrize("module", sorted(loaded_with("__init__")))
def test_what_a_bare_import_loads_needs_nothing_for_training(module):
    assert imported_packages(module) & FOR_TRAINING == set()


def test_packages_for_training_are_seen():
    assert {"accelerate", "tqdm"} <= imported_packages("block_play")
    assert "trl" in imported_packages("grpo_trainer")


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


@pytest.mark.parametrize("module", STEP_MODULES)
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


@pytest.mark.parametrize("path", sorted(Path(__file__).parent.glob("*.py")), ids=lambda path: path.name)
def test_every_test_file_begins_with_its_licence(path):
    assert path.read_text(encoding="utf-8").splitlines()[:2] == HEADER
