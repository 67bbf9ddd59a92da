# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Compiled kernels are those of the sources on disk, whatever was compiled before and by whom."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sol_hf.kernels.cpu import compilation
from support.paths import PYTHON_PATH


pytestmark = pytest.mark.skipif(not compilation.loads("numba_linear"), reason="numba is not installed")
HELPER = """
from .code_cache import njit

@njit()
def combine(a, b):
    return a * b
"""
KERNEL = """
from numba import types
from .code_cache import cfunc
from .helper import combine

@cfunc(types.int64(types.int64, types.int64))
def run(a, b):
    return combine(a, b)
"""
CALL = """
import json, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from wing import code_cache, kernel
folder = code_cache.cache_folder()
found = [kernel.run.ctypes(3, 4), kernel.run.cache_hits, folder and str(folder), [str(w.message) for w in caught]]
print(json.dumps(found))
"""


@pytest.fixture
def wing(tmp_path) -> Path:
    """A copy of the folder of CPU kernels as a package of its own, with a small kernel and its helper in it."""
    folder = tmp_path / "site" / "wing"
    shutil.copytree(Path(compilation.__file__).parent, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "helper.py").write_text(HELPER)
    (folder / "kernel.py").write_text(KERNEL)
    return folder


def start(wing: Path, **environment: str) -> subprocess.Popen:
    kept = {name: value for name, value in os.environ.items() if name not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
    env = kept | {"PYTHONPATH": str(wing.parent), "PYTHONDONTWRITEBYTECODE": "1"} | environment
    command = [sys.executable, "-c", CALL]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def result(process: subprocess.Popen) -> tuple[int, int, str | None, list[str]]:
    """What the kernel makes of 3 and 4, how often its code came from the cache, the folder of that, and warnings."""
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return tuple(json.loads(out))


def test_a_changed_helper_is_compiled_anew_and_its_old_code_does_no_harm(wing):
    assert result(start(wing))[:2] == (12, 0)
    (wing / "helper.py").write_text(HELPER.replace("a * b", "a + b"))
    assert result(start(wing))[:2] == (7, 0)
    (wing / "helper.py").write_text(HELPER)
    value, hits, folder, warned = result(start(wing))
    assert (value, hits, warned) == (12, 1, []) and Path(folder).parent == wing / "__pycache__"


def test_processes_that_start_at_once_share_one_compilation_outside_of_a_read_only_package(wing, tmp_path):
    (wing / "__pycache__").write_text("stands for a folder that cannot be written to")
    processes = [start(wing, XDG_CACHE_HOME=str(tmp_path / "cache")) for _ in range(3)]
    found = [result(process) for process in processes]
    assert [value for value, *_ in found] == [12] * 3 and sorted(hits for _, hits, *_ in found) == [0, 1, 1]
    assert {Path(folder).parent for _, _, folder, _ in found} == {tmp_path / "cache" / "sol_hf"}


@pytest.mark.slow
def test_without_any_folder_every_process_compiles_and_says_so(wing, tmp_path):
    (tmp_path / "file").write_text("")
    value, hits, folder, warned = result(start(wing, NUMBA_CACHE_DIR=str(tmp_path / "file")))
    assert (value, hits, folder) == (12, 0, None)
    assert len(warned) == 1 and "set the environment variable `NUMBA_CACHE_DIR`" in warned[0]
    assert result(start(wing, NUMBA_CACHE_DIR=str(tmp_path / "named")))[:2] == (12, 0)
    assert len(list((tmp_path / "named").glob("sol_hf-kernels-*"))) == 1


LOAD = """
import importlib, json, sys
from pathlib import Path
import sol_hf.kernels.cpu as wing
from sol_hf.kernels.cpu import code_cache
names = sorted(path.stem for path in Path(wing.__file__).parent.glob("numba_*.py"))
modules = [importlib.import_module(f"sol_hf.kernels.cpu.{name}") for name in names]
print(json.dumps(sorted(str(path) for path in code_cache.cache_folder().rglob("*.nbc"))))
"""


@pytest.mark.slow
def test_a_second_process_compiles_nothing_and_adds_no_file():
    """All kernels of the package, not stand-ins: each is found in the cache by every later process."""
    env = os.environ | {"PYTHONPATH": PYTHON_PATH}
    files = []
    for _ in range(2):
        out = subprocess.run([sys.executable, "-c", LOAD], env=env, capture_output=True, text=True, check=True).stdout
        files.append(json.loads(out))
    assert files[0] == files[1] and len(files[0]) > 10


def test_a_function_within_another_is_refused_since_no_process_would_find_its_code():
    from sol_hf.kernels.cpu import code_cache

    factor = code_cache.njit()(lambda x: 2 * x)

    def double(x):
        return factor(x)

    with pytest.raises(TypeError, match="double uses variables of the function around it"):
        code_cache.njit("int64(int64)")(double)
