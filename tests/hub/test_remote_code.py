# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The code in a policy's repository: one file, written from the package, that computes what the package computes."""

import ast
import configparser
import os
import re
import subprocess
import sys
from importlib.metadata import requires

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.dynamic_module_utils import get_imports

import sol_hf
from sol_hf.hub.remote_code.flatten import flat_code
from sol_hf.hub.remote_code.scopes import uses_of
from sol_hf.version import TRANSFORMERS
from support.paths import ROOT
from support.plain_code import plain_module


BUDGET = dict(token_keep=0.5, mlp_keep=0.7, bits=8)
SAMPLED = dict(do_sample=True, temperature=0.9)
CASES = {
    "greedy": {},
    "fast paths": dict(backend="auto"),
    "sampled tokens and actions": dict(**SAMPLED, do_sample_actions=True),
    "every episode": dict(budget_horizon="episode"),
    "soft": dict(budget_mode="soft"),
    "exact": dict(exact=True),
    "nested planes": dict(bits_backend="nested"),
    "int8": dict(bits_backend="int8"),
    "half of the bytes of keys": dict(kv_dtype="bfloat16"),
    "lossless": dict(lossless=3, **SAMPLED),
    "beams": dict(num_beams=2),
    "agreement": dict(measure_agreement=True),
    "sketch": {},
    "relevancy": {},
}


@pytest.fixture(scope="module")
def base():
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, vocab_size=64, eos_token_id=None)
    config = LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, initializer_range=0.5)
    return LlamaForCausalLM(config).eval()


def model_of(package, base, criterion: str):
    """A policy with fixed random weights, whose choices depend on them."""
    config = package.SOLConfig(bits=[4, 8, 16], policy_hidden_size=16, policy_num_heads=2, episode_length=4)
    config.criterion = criterion
    model = package.SOLForCausalLM.from_base(base, config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("case", CASES)
def test_it_gives_the_tokens_and_actions_of_the_package(base, case):
    ids = torch.randint(64, (2, 24), generator=torch.Generator().manual_seed(2))
    ids[0, :5] = 0
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    options = dict(max_new_tokens=10, return_dict_in_generate=True, pad_token_id=0, backend="reference", **BUDGET)
    outputs = []
    for package in (sol_hf, plain_module()):
        criterion = case if case in ("sketch", "relevancy") else "quest"
        model = model_of(package, base, criterion)
        torch.manual_seed(3)
        outputs.append(model.generate(ids, attention_mask=mask, **{**options, **CASES[case]}))
        del model
    theirs, ours = outputs
    assert torch.equal(theirs.sequences, ours.sequences)
    for name in ("actions", "realised", "agreement"):
        expected, found = getattr(theirs, name, None), getattr(ours, name, None)
        assert (expected is None and found is None) or torch.equal(torch.as_tensor(expected), torch.as_tensor(found))
    assert {name for name in theirs if theirs[name] is not None} == {name for name in ours if ours[name] is not None}


def test_it_scores_as_the_package_does(base):
    ids = torch.randint(64, (2, 20), generator=torch.Generator().manual_seed(4))
    scores = []
    for package in (sol_hf, plain_module()):
        output = model_of(package, base, "quest").score(ids, context_length=8, **BUDGET, return_logits=True)
        scores.append(output)
    torch.testing.assert_close(scores[0].logits, scores[1].logits, atol=1e-5, rtol=0)


def test_two_copies_run_side_by_side_on_one_base(base):
    """Each copy has attention functions of its own; one must not call those of another."""
    ids = torch.arange(1, 21)[None]
    options = dict(max_new_tokens=6, backend="reference", **BUDGET)
    models = [model_of(package, base, "quest") for package in (sol_hf, plain_module(), plain_module("another_copy"))]
    texts = [model.generate(ids, **options).tolist() for model in (*models, *models)]
    assert all(text == texts[0] for text in texts)


def test_what_it_refuses_names_the_package(base):
    model = model_of(plain_module(), base, "quest")
    with pytest.raises(ValueError, match="needs a GPU|pip install"):
        model.generate(torch.arange(1, 21)[None], max_new_tokens=4, cuda_graphs=True, **BUDGET)
    with pytest.raises(ModuleNotFoundError, match=r"kernels\.cuda\.pages\.append_tokens .* pip install sol_hf"):
        plain_module().left_out("kernels.cuda.pages.append_tokens")


def test_it_needs_nothing_but_what_transformers_needs(tmp_path):
    path = tmp_path / "sol_plain.py"
    path.write_text(flat_code())
    packages = set(get_imports(path)) - sys.stdlib_module_names - {"torch", "transformers"}
    wanted = {re.split(r"[^\w.-]", line)[0].lower() for line in requires("transformers") if "extra ==" not in line}
    names = {"huggingface_hub": "huggingface-hub", "yaml": "pyyaml"}
    assert packages and {names.get(package, package) for package in packages} <= wanted


def test_every_name_in_it_is_bound_once():
    code = flat_code()
    undefined = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F811,F821,F822,E9", "-"],
        input=code,
        capture_output=True,
        text=True,
    )
    assert undefined.returncode == 0, undefined.stdout
    names = [node.name for node in ast.parse(code).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert len(names) == len(set(names))


def test_it_is_for_people_to_read():
    """No code is hidden in strings, what is left out has no trace, and every part says where it is from."""
    code = flat_code()
    nodes = list(ast.walk(ast.parse(code)))
    calls = {node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not calls & {"eval", "exec", "compile", "__import__"}
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    imports = {name.partition(".")[0] for name in names}
    assert "torch" in imports
    assert not imports & {"subprocess", "pickle", "socket", "ctypes", "numba", "urllib", "sol_hf"}
    modules = re.findall(r"^# ((?:\w+/)*\w+)\.py$", code, re.MULTILINE)
    assert len(modules) > 150 and not [name for name in modules if name.startswith(("training", "evaluation", "cli"))]
    assert not [node for node in nodes if isinstance(node, ast.ImportFrom) and node.level]


def test_members_that_need_a_compiler_stay_out():
    modules = set(re.findall(r"^# ((?:\w+/)*\w+)\.py$", flat_code(), re.MULTILINE))
    assert "execution/attention/step/gather" in modules and "selection/criteria/sketch" in modules
    assert not {"execution/attention/step/numba_pages", "execution/linear/compiled"} & modules
    assert {name for name in modules if name.startswith("kernels/")} == {
        "kernels/cpu/sparse_mlp",
        "kernels/cuda/triton_support",
    }


def test_the_versions_of_transformers_are_those_of_the_installation():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    first, last = TRANSFORMERS
    assert f"transformers>={first},<{last}" in setup["options"]["install_requires"].split()
    assert f"transformers>={first},<{last}" in flat_code()


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("def f(x): return x + y", ["f", "y"]),
        ("def f():\n    y = 1\n    return [y for z in y if z]", ["f"]),
        ("def f():\n    return [z for z in z]", ["f", "z"]),
        ("class A:\n    y = 1\n    def f(self): return y", ["A", "y"]),
        ("def f(a: 'A | B' = c) -> D: ...", ["A", "B", "D", "c", "f"]),
        ("def f():\n    def g(): return h\n    h = 1", ["f"]),
        ("f(y=1)\nf.y", ["f", "f"]),
        ("m.y(m)", ["m", "m.y"]),
        ("def f(m): return m.y", ["f"]),
        ("def f():\n    return lambda y: y + z", ["f", "z"]),
        ("def f():\n    if any((y := x) for x in z): return y", ["any", "f", "z"]),
        ("try:\n    pass\nexcept E as e:\n    e", ["E", "e"]),
        ("def f():\n    try:\n        pass\n    except E as e:\n        e", ["E", "f"]),
    ],
)
def test_names_of_the_top_level_are_told_from_local_ones(code, expected):
    found = [use.name for use in uses_of(ast.parse(code).body, lambda name: name == "m")]
    assert sorted(found) == expected


@pytest.mark.slow
def test_the_shipped_policy_has_the_code_of_this_version():
    code, stored = flat_code(), list(ROOT.glob("model_cards/*/sol_plain.py"))
    assert len(stored) == len(list(ROOT.glob("model_cards/*/config.json"))) > 1
    for path in stored:
        assert path.read_text(encoding="utf-8") == code, "run: python -m sol_hf.hub.remote_code model_cards/*"


@pytest.mark.slow
def test_every_process_writes_the_same_file():
    script = "from sol_hf.hub.remote_code.flatten import flat_code; print(end=flat_code())"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == flat_code()
