# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Compiled kernels are those of the sources on disk, whatever was compiled before and by whom."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
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
OTHER = """
from numba import types
from .code_cache import cfunc

@cfunc(types.int64(types.int64, types.int64))
def run(a, b):
    return a - b
"""
CALL = """
import json, os, signal, sys, warnings
if "killed" in sys.argv:
    os.replace = lambda *names: os.kill(os.getpid(), signal.SIGKILL)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from wing import kernel, other
    run, hits = kernel.run.load(), other.run.load().cache_hits if "other" in sys.argv else None
folder, messages = kernel.run.folder, [str(warned.message) for warned in caught]
print(json.dumps([run.ctypes(3, 4), run.cache_hits, folder and str(folder), messages, hits]))
"""
SAID = "Compiling kernels for this machine"


@pytest.fixture
def wing(tmp_path) -> Path:
    """A copy of the folder of CPU kernels as a package of its own, with a small kernel and its helper in it."""
    folder = tmp_path / "site" / "wing"
    shutil.copytree(Path(compilation.__file__).parent, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "helper.py").write_text(HELPER)
    (folder / "kernel.py").write_text(KERNEL)
    (folder / "other.py").write_text(OTHER)
    return folder


def start(wing: Path, *how: str, **environment: str) -> subprocess.Popen:
    kept = {name: value for name, value in os.environ.items() if name not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
    env = kept | {"PYTHONPATH": str(wing.parent), "PYTHONDONTWRITEBYTECODE": "1"} | environment
    command = [sys.executable, "-c", CALL, *how]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@dataclass
class Result:
    """What the kernel makes of 3 and 4, how often its code and that of the other one came from the cache, its folder,
    warnings, and what was said."""

    value: int
    hits: int
    folder: str | None
    warned: list[str]
    others: int | None
    said: str


def result(process: subprocess.Popen) -> Result:
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return Result(*json.loads(out), errors)


def test_a_changed_helper_is_compiled_anew_alone_and_its_old_code_does_no_harm(wing):
    first = result(start(wing, "other"))
    assert (first.value, first.hits, first.others) == (12, 0, 0) and first.said.count(SAID) == 1
    (wing / "helper.py").write_text(HELPER.replace("a * b", "a + b"))
    changed = result(start(wing, "other"))
    assert (changed.value, changed.hits, changed.others) == (7, 0, 1)
    (wing / "helper.py").write_text(HELPER)
    again = result(start(wing, "other"))
    assert (again.value, again.hits, again.others, again.warned, again.said) == (12, 1, 1, [], "")
    assert Path(again.folder).parent == wing / "__pycache__"


def test_processes_that_start_at_once_share_one_compilation_outside_of_a_read_only_package(wing, tmp_path):
    (wing / "__pycache__").write_text("stands for a folder that cannot be written to")
    processes = [start(wing, XDG_CACHE_HOME=str(tmp_path / "cache")) for _ in range(3)]
    found = [result(process) for process in processes]
    assert [each.value for each in found] == [12] * 3 and sorted(each.hits for each in found) == [0, 1, 1]
    assert {Path(each.folder).parent for each in found} == {tmp_path / "cache" / "sol_hf"}


@pytest.mark.slow
def test_without_any_folder_every_process_compiles_and_says_so(wing, tmp_path):
    (tmp_path / "file").write_text("")
    found = result(start(wing, NUMBA_CACHE_DIR=str(tmp_path / "file")))
    assert (found.value, found.hits, found.folder) == (12, 0, None) and SAID not in found.said
    assert len(found.warned) == 1 and "set the environment variable `NUMBA_CACHE_DIR`" in found.warned[0]
    found = result(start(wing, NUMBA_CACHE_DIR=str(tmp_path / "named")))
    assert (found.value, found.hits) == (12, 0)
    assert len(list((tmp_path / "named").glob("sol_hf-kernels-kernel-*"))) == 1


@pytest.mark.slow
def test_a_process_that_is_killed_while_it_writes_harms_no_later_one(wing):
    killed = start(wing, "killed")
    killed.communicate(timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert [result(start(wing)).hits for _ in range(2)] == [0, 1]


LOAD = """
import json
from sol_hf.kernels.cpu import compilation, numba_tokens
compilation.compile_kernels(compilation.DTYPES)
print(json.dumps(sorted(str(path) for path in numba_tokens.attend_float32.folder.parent.rglob("*.nbc"))))
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


def test_a_folder_that_cannot_be_written_to_any_more_is_done_without(monkeypatch, tmp_path):
    from sol_hf.kernels.cpu import code_cache

    (tmp_path / "file").write_text("")
    monkeypatch.setattr(code_cache, "cache_folder", lambda source: tmp_path / "file" / "folder")
    code_cache.say_that_it_is_not_kept.cache_clear()
    with pytest.warns(RuntimeWarning, match="set the environment variable `NUMBA_CACHE_DIR`"):
        assert code_cache.njit("int64(int64)")(_double)(4) == 8


def _double(x):
    return 2 * x


def _wrong(x):
    return x.no_such_thing


def test_a_kernel_that_numba_cannot_compile_is_an_error_with_the_way_out(monkeypatch):
    from sol_hf.kernels.cpu import code_cache

    monkeypatch.setattr(code_cache, "cache_folder", lambda source: None)
    with pytest.raises(RuntimeError, match=r'cannot compile .*_wrong: .*`backend="reference"`'):
        code_cache.njit("int64(int64)")(_wrong).load()
