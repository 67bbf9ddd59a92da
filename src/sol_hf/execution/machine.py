# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What a measured time is true of: the kind of machine."""

import functools
import platform
from pathlib import Path

import torch


CPU_INFO = Path("/proc/cpuinfo")
LONGEST = 100


def describe_machine(device: torch.device) -> dict[str, str | int]:
    """The kind of processor of a device as `machine`, and on a CPU the number of `threads`.

    Args:
        device (`torch.device`): Where a base computes.
    """
    if device.type == "cuda":
        return {"machine": torch.cuda.get_device_name(device)[:LONGEST]}
    if device.type != "cpu":
        return {"machine": device.type}
    return {"machine": _processor()[:LONGEST], "threads": torch.get_num_threads()}


@functools.lru_cache(maxsize=1)
def _processor() -> str:
    """The name of the CPU; of the architecture, where the system does not say more."""
    if CPU_INFO.is_file():
        for line in CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
