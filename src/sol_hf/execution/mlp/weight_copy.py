# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Copies of an MLP's weights in another layout or dtype, used as long as the weights do not change.

torch does not report that a weight has changed. Most changes alter its address or its version counter. A change
through `.data`, for example when an adapter is merged, alters neither. It is detected by comparing a sample of the
elements, which takes 0.1 ms per weight. A comparison of all elements before every generation would take as long as a
decode step.
"""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import nn

from .parts import MLPParts, find_parts, is_plain_activation, is_plain_linear, tensors_of


SAMPLES = 1024


@dataclass(frozen=True)
class Fingerprint:
    """Address, version and a sample of the elements of a tensor, to detect whether it has changed."""

    address: int
    shape: torch.Size
    version: int
    sample: bytes

    @classmethod
    def of(cls, weight: torch.Tensor) -> "Fingerprint":
        """The fingerprint of a tensor as it is now."""
        sample = weight.detach().reshape(-1)[:: sample_stride(weight.shape)].contiguous().cpu()
        version = 0 if weight.is_inference() else weight._version
        return cls(weight.data_ptr(), weight.shape, version, sample.view(torch.uint8).numpy().tobytes())


def sample_stride(shape: torch.Size) -> int:
    """Distance between sampled elements. It has no common divisor with the width, so that all channels are sampled.

    If there are more than `SAMPLES` channels, only about `SAMPLES` of them are sampled.
    """
    stride = max(1, shape.numel() // SAMPLES)
    while math.gcd(stride, shape[-1]) > 1:
        stride += 1
    return stride


class MLPCopy:
    """A copy of an MLP's weights that a fast path uses instead of the original.

    Args:
        parts ([`MLPParts`]): The MLP, on the CPU.
    """

    def __init__(self, parts: MLPParts):
        self.parts = parts
        self._fingerprints = self._current()

    @classmethod
    def of(cls, module: nn.Module) -> Self | None:
        """The copy for an MLP; `None` if it is not on the CPU or does not consist of known parts."""
        parts = find_parts(module)
        return None if parts is None or parts.gate.device.type != "cpu" else cls(parts)

    @property
    def nbytes(self) -> int:
        """Memory of the copy."""
        raise NotImplementedError

    def _current(self) -> list[Fingerprint]:
        return [Fingerprint.of(tensor) for tensor in tensors_of(self.parts.sources)]

    def still_fits(self, module: nn.Module) -> bool:
        """Whether a module still has the weights that were copied, and the same activation."""
        sources, function = self.parts.sources.items(), self.parts.function
        same = all(getattr(module, name, None) is source and is_plain_linear(source) for name, source in sources)
        if function is not None:
            same = same and getattr(module, function[0], None) is function[1] and is_plain_activation(function[1])
        return same and self._current() == self._fingerprints
