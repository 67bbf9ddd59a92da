# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Training in several processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file


SCRIPT = Path(__file__).with_name("train_tiny.py")


def train(folder: Path, processes: int) -> dict[str, torch.Tensor]:
    """Weights after a run of the script in `processes` processes, on the loopback interface."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CI": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([*launcher, str(SCRIPT), str(folder)], check=True, env=environment, timeout=240)
    return load_file(folder / "model.safetensors")


@pytest.mark.slow
def test_two_processes_make_the_update_of_one_with_twice_the_batch(tmp_path):
    one, two = train(tmp_path / "one", 1), train(tmp_path / "two", 2)
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-6, rtol=0)
