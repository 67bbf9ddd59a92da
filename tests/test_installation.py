# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What `pip install .` alone installs, and what works with it: decoding, saving, loading."""

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest


pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

ROOT = Path(__file__).resolve().parent
while not (ROOT / "setup.cfg").exists():
    ROOT = ROOT.parent
CONSTRAINTS = ROOT / "constraints.txt"
OF_EXTRAS = ("trl", "peft", "datasets", "evaluate", "lm-eval", "matplotlib", "gguf", "numba")
DECODE = """
import json, sys
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from sol_hf import SOLConfig, SOLForCausalLM

torch.manual_seed(0)
sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
base = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=64, eos_token_id=None, pad_token_id=0)).eval()
axes = dict(token_keep=[0.5, 1.0], mlp_keep=[0.5, 1.0], bits=[8, 16])
model = SOLForCausalLM.from_base(base, SOLConfig(**axes, episode_length=8, policy_hidden_size=16, policy_num_heads=2))
prompt = torch.arange(1, 25)[None]
budget = dict(token_keep=0.75, mlp_keep=0.75, bits=12)
settings = dict(**budget, max_new_tokens=16, do_sample=False, return_dict_in_generate=True)
output = model.generate(prompt, **settings)
model.save_pretrained(sys.argv[1])
again = SOLForCausalLM.from_pretrained(sys.argv[1], base=base).generate(prompt, **settings)
print(json.dumps(dict(
    new=output.sequences.shape[1] - prompt.shape[1],
    same=torch.equal(output.sequences, again.sequences),
    actions=output.actions.shape[-1],
    realised=output.realised.tolist()[0],
)))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """The Python of an environment into which the package was installed without any extra."""
    folder = tmp_path_factory.mktemp("installation")
    source = folder / "source"
    source.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    venv.create(folder / "environment", with_pip=True)
    python = folder / "environment" / "bin" / "python"
    torch = next(line for line in CONSTRAINTS.read_text().splitlines() if line.startswith("torch=="))
    # torch comes first and exact, so that pip may take a CPU wheel that is on the machine.
    for arguments in ([torch], ["--constraint", str(CONSTRAINTS), str(source)]):
        run([str(python), "-m", "pip", "install", "--quiet", *arguments])
    return python


def run(command: list[str], succeeds: bool = True) -> subprocess.CompletedProcess:
    """Run a command outside of the repository, without Python settings of the environment."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COVERAGE"))}
    done = subprocess.run(command, cwd=Path(sys.prefix), env=environment, capture_output=True, text=True)
    assert (done.returncode == 0) == succeeds, done.stdout + done.stderr
    return done


def test_no_package_of_an_extra_is_installed(python):
    listed = json.loads(run([str(python), "-m", "pip", "list", "--format", "json"]).stdout)
    installed = {entry["name"].lower().replace("_", "-") for entry in listed}
    assert {"sol-hf", "torch", "transformers", "accelerate", "huggingface-hub", "safetensors"} <= installed
    assert installed.isdisjoint(OF_EXTRAS)


def test_decoding_saving_and_loading_need_nothing_else(python, tmp_path):
    report = json.loads(run([str(python), "-c", DECODE, str(tmp_path / "policy")]).stdout.splitlines()[-1])
    assert (report["new"], report["same"], report["actions"]) == (16, True, 16)
    assert all(spent <= allowed for spent, allowed in zip(report["realised"], (0.75, 0.75, 12), strict=True))
    assert (tmp_path / "policy" / "README.md").exists()


@pytest.mark.parametrize(
    "code, message",
    [
        ("import sol_hf; sol_hf.SOLGRPOTrainer", "`SOLGRPOTrainer` needs datasets: pip install 'sol_hf[train]'"),
        ("import sol_hf; sol_hf.Sweep", "`Sweep` needs datasets: pip install 'sol_hf[eval]'"),
        ("import sol_hf; sol_hf.save_figure", "`save_figure` needs matplotlib: pip install 'sol_hf[eval]'"),
        ("import sol_hf; sol_hf.SOLLM", "`SOLLM` needs lm_eval: pip install 'sol_hf[eval]'"),
        ("import sol_hf.integrations.lm_eval_adapter", "`--model sol` needs lm_eval: pip install 'sol_hf[eval]'"),
    ],
)
def test_what_needs_an_extra_says_which(python, code, message):
    error = run([str(python), "-c", code], succeeds=False).stderr
    assert error.splitlines()[-1] == f"ModuleNotFoundError: {message}"


@pytest.mark.parametrize("arguments", [["pareto", "policy", "--data", "x.txt", "--out", "x"], ["lm-eval"]])
def test_the_command_says_which_extra_it_needs(python, arguments):
    error = run([str(python.parent / "sol-hf"), *arguments], succeeds=False).stderr
    assert error.splitlines()[-1].startswith("sol-hf: ")
    assert error.splitlines()[-1].endswith(": pip install 'sol_hf[eval]'")
    assert "Traceback" not in error
