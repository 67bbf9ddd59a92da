# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""No tensor is computed on by Triton's kernels, which are not in this file."""

import contextlib

import torch


DEVICES: tuple[str, ...] = ("cuda",)


def has_triton() -> bool:
    """Whether the kernels can be used."""
    return False


def supports(x: torch.Tensor) -> bool:
    """Whether the kernels support a tensor."""
    return False


def on_device_of(x: torch.Tensor) -> contextlib.AbstractContextManager:
    """A context in which the GPU of a tensor is the current device."""
    return torch.cuda.device(x.device) if x.device.type == "cuda" else contextlib.nullcontext()
