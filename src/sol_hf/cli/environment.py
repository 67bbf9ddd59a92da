# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""`sol-hf env`: what a report of a problem should contain."""

import importlib.metadata
import platform
import sys


PACKAGES = "torch transformers accelerate safetensors huggingface-hub numpy numba triton trl peft datasets".split()
PACKAGES += "lm-eval evaluate fastapi openai uvicorn".split()


def env() -> int:
    """Print the versions of everything that matters, and the machine. Paste it into a report of a problem.

    Example: sol-hf env
    """
    import torch

    from ..errors import EXTRAS
    from ..version import __version__

    lines = {"sol_hf": __version__, "python": sys.version.split()[0], "platform": platform.platform()}
    for package in PACKAGES:
        lines[package] = _version(package)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    lines |= {"processor": f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads", "gpu": gpu}
    lines["extras"] = ", ".join(EXTRAS)
    width = max(map(len, lines))
    for name, value in lines.items():
        print(f"{name:{width}}  {value}")
    return 0


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
