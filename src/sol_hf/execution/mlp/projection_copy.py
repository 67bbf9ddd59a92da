# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The weights of a last projection, neuron-major: copied, or where they are."""

from typing import ClassVar, Self

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from .parts import is_plain_conv1d, is_plain_linear, tensors_of
from .weight_copy import Fingerprint


class ProjectionCopy:
    """The weights of a last projection in the layout of a fast path, used as long as they do not change.

    Those of `Conv1D`, `(neurons, outputs)`, are neuron-major as they are, and are not copied.

    Args:
        module (`nn.Linear` or `Conv1D`): The projection.

    Class attributes:
        device (`str`, *optional*): Type of the only device that the fast path runs on; `None` for any.
    """

    device: ClassVar[str | None] = None

    def __init__(self, module: nn.Linear | Conv1D):
        weight = module.weight.detach()
        self.in_place = isinstance(module, Conv1D)
        self.weight = weight if self.in_place else self.neuron_major(weight)
        self.bias = None if module.bias is None else module.bias.detach()
        self._fingerprints = _fingerprints(module)

    @classmethod
    def of(cls, module: nn.Module) -> Self | None:
        """The copy for a projection; `None` if it is no plain linear layer and no `Conv1D`, or on another device."""
        if not isinstance(module, nn.Linear | Conv1D) or not (is_plain_linear(module) or is_plain_conv1d(module)):
            return None
        return cls(module) if cls.device is None or module.weight.device.type == cls.device else None

    def neuron_major(self, weight: torch.Tensor) -> torch.Tensor:
        """A copy of a weight `(outputs, neurons)` in which the weights of a neuron are contiguous."""
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        """Memory of the copy."""
        return 0 if self.in_place else self.weight.nbytes

    def still_fits(self, module: nn.Module) -> bool:
        """Whether a projection still has the weights that were copied."""
        plain = is_plain_conv1d(module) if self.in_place else is_plain_linear(module)
        return plain and _fingerprints(module) == self._fingerprints


def _fingerprints(module: nn.Linear | Conv1D) -> list[Fingerprint]:
    return [Fingerprint.of(tensor) for tensor in tensors_of({"": module})]
