# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The kernels on a processor without AVX-512, for which numba is told to compile."""

import os
import platform
import subprocess
import sys

import pytest

from sol_hf.kernels.cpu import compilation
from support.paths import TESTS


SELECTED = (
    "kernels/test_planes.py",
    "kernels/test_pairs.py",
    "kernels/test_token_choice.py",
    "execution/test_linear.py",
    "execution/test_token_attention.py",
    "execution/test_paged_attention.py",
)


@pytest.mark.slow
@pytest.mark.skipif(
    not compilation.loads("numba_tokens") or platform.machine().lower() not in ("x86_64", "amd64"),
    reason="numba is not installed, or compiles for other processors",
)
def test_planes_and_attention_are_right_without_dot_products_of_bytes(tmp_path):
    told = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma,+bmi,+bmi2,+popcnt"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not slow"]
    command += [str(TESTS / name) for name in SELECTED]
    environment = {**os.environ, **told, "NUMBA_CACHE_DIR": str(tmp_path)}
    run = subprocess.run(command, env=environment, cwd=TESTS.parent, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-1000:]
