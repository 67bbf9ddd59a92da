# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Copies of an MLP's weights in another layout or dtype, kept as long as they are those of the base.

torch does not report that a weight has changed. Most changes show in its address or its version counter. A change
through `.data`, as when an adapter is merged, does not; it shows in a sample of the elements, which takes 0.1 ms per
weight. To compare all elements before every generation would take as long as a decode step.
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
    """Tells whether a tensor is still the one that was copied."""

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
    """Elements from one sample to the next: with no divisor in common with the width, no channel is left out.

    Of more than `SAMPLES` channels, as many are met.
    """
    stride = max(1, shape.numel() // SAMPLES)
    while math.gcd(stride, shape[-1]) > 1:
        stride += 1
    return stride


class MLPCopy:
    """What a fast path computes with in place of an MLP's own weights.

    Args:
        parts ([`MLPParts`]): The MLP, on the CPU.
    """

    def __init__(self, parts: MLPParts):
        self.parts = parts
        self._fingerprints = self._current()

    @classmethod
    def of(cls, module: nn.Module) -> Self | None:
        """The copy for an MLP; `None` for one that is not on the CPU or not made of known parts."""
        parts = find_parts(module)
        return None if parts is None or parts.gate.device.type != "cpu" else cls(parts)

    @property
    def nbytes(self) -> int:
        """Memory of the copy."""
        raise NotImplementedError

    def _current(self) -> list[Fingerprint]:
        return [Fingerprint.of(tensor) for tensor in tensors_of(self.parts.sources)]

    def still_fits(self, module: nn.Module) -> bool:
        """Whether a module's weights are those that were copied, and its activation is the same."""
        sources, function = self.parts.sources.items(), self.parts.function
        same = all(getattr(module, name, None) is source and is_plain_linear(source) for name, source in sources)
        if function is not None:
            same = same and getattr(module, function[0], None) is function[1] and is_plain_activation(function[1])
        return same and self._current() == self._fingerprints
