# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Whether the Triton kernels can work on a tensor. Triton is imported at the first use of a kernel."""

import contextlib
import importlib.util
from functools import lru_cache

import torch


DEVICES: tuple[str, ...] = ("cuda",)
"""Kernels could also run on CPU tensors in Triton's interpreter: tests do, by adding `"cpu"`."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@lru_cache
def has_triton() -> bool:
    """Whether Triton, an optional dependency, is installed."""
    return importlib.util.find_spec("triton") is not None


def supports(x: torch.Tensor) -> bool:
    """Whether device and dtype of a tensor are ones that the kernels know, and no gradient is asked for."""
    return x.device.type in DEVICES and x.dtype in DTYPES and not x.requires_grad and has_triton()


def on_device_of(x: torch.Tensor) -> contextlib.AbstractContextManager:
    """Makes the GPU of a tensor the current one, which kernels are launched on; nothing where there is none."""
    return torch.cuda.device(x.device) if x.device.type == "cuda" else contextlib.nullcontext()
