# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The exports of the package, and the modules that a plain import does not load."""

import ast
import inspect
import json
import re
import subprocess
import sys

import pytest

import sol_hf
from sol_hf.errors import missing_extra


OPTIONAL = ("trl", "peft", "datasets", "pyarrow", "lm_eval", "matplotlib", "gguf", "rich")
PROBE = """
import json, logging, sys, warnings
import torch, transformers
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

OPTIONAL = {optional!r}

def loggers():
    every = [logging.getLogger(), *(logging.getLogger(name) for name in sorted(logging.root.manager.loggerDict))]
    return {{
        logger.name: [logger.level, logger.propagate, [repr(handler) for handler in logger.handlers]]
        for logger in every
        if logger.name == "root" or logger.name.split(".")[0] in ("transformers", "torch", "sol_hf", "huggingface_hub")
    }}

def state():
    functions = {{name: id(ALL_ATTENTION_FUNCTIONS[name]) for name in ALL_ATTENTION_FUNCTIONS.valid_keys()}}
    masks = {{name: id(ALL_MASK_ATTENTION_FUNCTIONS[name]) for name in ALL_MASK_ATTENTION_FUNCTIONS.valid_keys()}}
    return dict(
        functions=functions,
        masks=masks,
        dtype=str(torch.get_default_dtype()),
        threads=torch.get_num_threads(),
        grad=torch.is_grad_enabled(),
        seed=torch.initial_seed(),
        warnings=[repr(entry) for entry in warnings.filters],
        generate=id(transformers.GenerationMixin.generate),
        forward=id(transformers.LlamaForCausalLM.forward),
        cache=id(transformers.DynamicCache.update),
    )

before, before_loggers = state(), loggers()
loaded = set(sys.modules)  # what transformers loads when it is asked for the above is its own matter
import sol_hf
after, after_loggers = state(), loggers()
own_loaded = sys.modules.keys() - loaded
import sol_hf.integrations.smollm2
print(json.dumps(dict(
    before=before,
    after=after,
    handlers_changed=[name for name, found in before_loggers.items() if after_loggers[name] != found],
    own=[name for name, found in after_loggers.items() if name.split(".")[0] == "sol_hf" and found[2]],
    loaded=[name for name in OPTIONAL if name in own_loaded],
    own_modules=[name.removeprefix("sol_hf.") for name in own_loaded if name.startswith("sol_hf.")],
    loaded_by_smollm2="gguf" in sys.modules,
    listed=dir(sol_hf),
    cuda=torch.cuda.is_initialized(),
)))
"""


@pytest.fixture(scope="module")
def probe() -> dict:
    """The state of a fresh process before and after `import sol_hf`."""
    code = PROBE.format(optional=OPTIONAL)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1]) | {"stderr": result.stderr, "printed": result.stdout.count("\n")}


def test_exports_are_sorted_and_unique():
    assert sol_hf.__all__ == sorted(set(sol_hf.__all__))


@pytest.mark.parametrize("name", sol_hf.__all__)
def test_an_export_is_there_and_described(name):
    export = getattr(sol_hf, name)
    if name == "__version__":
        assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", export)
    else:
        assert export.__module__.startswith("sol_hf.")
        own = vars(export).get("__doc__") if isinstance(export, type) else export.__doc__
        assert len((own or "").strip()) > 20


def test_a_type_checker_sees_the_lazy_exports():
    """They are imported for it from the modules that they come from at run time."""
    tree = ast.parse(inspect.getsource(sol_hf))
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    imported = {alias.name: node.module for node in block.body for alias in node.names}
    assert imported == sol_hf._LAZY
    assert imported.keys() <= set(sol_hf.__all__)


@pytest.mark.parametrize("name, module", sol_hf._LAZY.items())
def test_a_lazy_export_is_that_of_its_module(name, module):
    assert getattr(sol_hf, name).__module__ == f"sol_hf.{module}"
    assert vars(sol_hf)[name] is getattr(sol_hf, name)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'sol_hf' has no attribute 'SOLTrainer'"):
        sol_hf.SOLTrainer  # noqa: B018
    assert not hasattr(sol_hf, "SOLTrainer")


@pytest.mark.parametrize(
    "name, module, extra",
    [
        ("SOLGRPOTrainer", "trl", "train"),
        ("SOLGRPOTrainer", "datasets", "train"),
        ("SOLGRPOConfig", "trl", "train"),
        ("BudgetedPerplexity", "evaluate", "eval"),
        ("SOLLM", "lm_eval", "eval"),
        ("Sweep", "datasets", "eval"),
        ("plot_pareto", "matplotlib.axes", "eval"),
    ],
)
def test_a_missing_extra_is_named(monkeypatch, name, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, f"sol_hf.{sol_hf._LAZY[name]}", raising=False)
    monkeypatch.delitem(vars(sol_hf), name, raising=False)
    message = re.escape(f"`{name}` needs {module.partition('.')[0]}: pip install 'sol_hf[{extra}]'")
    with pytest.raises(ModuleNotFoundError, match=f"^{message}$") as caught:
        getattr(sol_hf, name)
    assert caught.value.name == module


def test_another_missing_module_is_no_matter_of_extras():
    error = ModuleNotFoundError("No module named 'nowhere'", name="nowhere")
    assert missing_extra("`Sweep`", error) is error


def test_every_extra_that_may_bring_a_package_is_named():
    error = ModuleNotFoundError("No module named 'datasets.arrow'", name="datasets.arrow")
    message = "It needs datasets: pip install 'sol_hf[train]' or pip install 'sol_hf[eval]'"
    assert str(missing_extra("It", error)) == message


def test_every_public_name_of_the_package_is_exported():
    own = {
        name
        for name, value in vars(sol_hf).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("sol_hf.")
    }
    assert own <= set(sol_hf.__all__)


def test_a_star_import_gives_the_exports():
    namespace: dict = {}
    exec("from sol_hf import *", namespace)
    assert set(sol_hf.__all__) <= namespace.keys()


def test_the_auto_classes_know_the_package():
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    config = AutoConfig.for_model("sol")
    assert type(config) is sol_hf.SOLConfig
    assert AutoModel._model_mapping[sol_hf.SOLConfig] is sol_hf.SOLPolicyModel
    assert AutoModelForCausalLM._model_mapping[sol_hf.SOLConfig] is sol_hf.SOLForCausalLM


def test_a_bare_import_loads_nothing_optional(probe):
    assert probe["loaded"] == []


def test_the_small_model_needs_its_extra_only_when_it_is_fetched(probe):
    assert not probe["loaded_by_smollm2"]


def test_a_bare_import_loads_no_module_of_a_lazy_export(probe):
    assert "modeling_sol" in probe["own_modules"]
    assert set(probe["own_modules"]).isdisjoint(sol_hf._LAZY.values())


def test_dir_lists_the_lazy_exports_before_they_are_loaded(probe):
    assert set(sol_hf.__all__) <= set(probe["listed"])


def test_a_bare_import_does_not_start_cuda(probe):
    assert probe["cuda"] is False


def test_a_bare_import_leaves_logging_alone(probe):
    assert probe["handlers_changed"] == []
    assert probe["own"] == []


def test_a_bare_import_says_nothing(probe):
    assert probe["printed"] == 1
    assert "sol_hf" not in probe["stderr"]
    assert "Warning" not in probe["stderr"]


@pytest.mark.parametrize("registry", ["functions", "masks"])
def test_a_bare_import_leaves_the_attention_functions_alone(probe, registry):
    before, after = probe["before"][registry], probe["after"][registry]
    assert len(before) > 1
    assert {name: after[name] for name in before} == before
    assert all(name.startswith("sol_") for name in after.keys() - before.keys())


@pytest.mark.parametrize("what", ["dtype", "threads", "grad", "seed", "warnings", "generate", "forward", "cache"])
def test_a_bare_import_changes_no_default(probe, what):
    assert probe["after"][what] == probe["before"][what]
