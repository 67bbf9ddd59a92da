# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Loads the compiled code of the fast paths before it is needed."""

import torch

from ..kernels.cpu.compilation import DTYPES, compile_kernels


def load_kernels(device: torch.device, dtype: torch.dtype, stored: torch.dtype | None = None) -> None:
    """Load or compile everything that steps of a base can need, so that no call has to.

    Args:
        device (`torch.device`): Where the base computes.
        dtype (`torch.dtype`): Of its weights.
        stored (`torch.dtype`, *optional*): Of keys and values, if that is another one.
    """
    if device.type == "cpu" and dtype in DTYPES:
        compile_kernels([dtype], stored)
