# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Checks whether the Triton kernels support a tensor. Triton is imported at the first use of a kernel."""

import contextlib
import importlib.util
from functools import lru_cache

import torch


DEVICES: tuple[str, ...] = ("cuda",)
"""Device types that the kernels run on. Tests add `"cpu"`, where Triton's interpreter runs them."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@lru_cache
def has_triton() -> bool:
    """Whether Triton, an optional dependency, is installed."""
    return importlib.util.find_spec("triton") is not None


def supports(x: torch.Tensor) -> bool:
    """Whether the kernels support the device and dtype of a tensor, and no gradient is needed."""
    return x.device.type in DEVICES and x.dtype in DTYPES and not x.requires_grad and has_triton()


def on_device_of(x: torch.Tensor) -> contextlib.AbstractContextManager:
    """A context in which the GPU of a tensor is the current device, on which kernels are launched; empty on a CPU."""
    return torch.cuda.device(x.device) if x.device.type == "cuda" else contextlib.nullcontext()
