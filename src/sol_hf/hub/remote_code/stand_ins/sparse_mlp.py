# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""No MLP is computed by compiled kernels, which are not in this file."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class KeptChannels:
    """The input of an MLP with all but the largest channels set to zero, and the channels that any token keeps."""

    x: torch.Tensor
    listed: torch.Tensor


def supports(x: torch.Tensor) -> bool:
    """Whether the kernels can work on a tensor."""
    return False


def keep_top_channels(x: torch.Tensor, fraction: torch.Tensor) -> KeptChannels:
    """Only called where `supports` says yes."""
    raise NotImplementedError


def fake_quantize(x: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """Only called where `supports` says yes."""
    raise NotImplementedError
