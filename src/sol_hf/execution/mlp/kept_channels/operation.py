# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The MLP of a step with an `mlp_keep`, and all of its implementations."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from ...dispatch import Operation
from ..kept_call import KeptCall
from ..parts import MLPParts


@dataclass(eq=False)
class MLPCall(KeptCall):
    """One MLP over the largest channels of its input.

    Args:
        last (`Callable`, *optional*): Its last projection over the kept neurons; `None` where all are read.
    """

    last: Callable[[torch.Tensor], torch.Tensor] | None = None

    def contract(self, neurons: torch.Tensor, parts: MLPParts) -> torch.Tensor:
        """The last projection's output for neurons `(rows, ..., neurons)`."""
        if self.last is not None:
            return self.last(neurons)
        return functional.linear(neurons, parts.down, parts.biases[2])


KEPT_CHANNELS: Operation[MLPCall] = Operation("implementation of an MLP over kept channels", package=__package__)
"""Implementations of an MLP over the largest channels of its input by name."""
