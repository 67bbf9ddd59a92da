# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Copies of an MLP's weights in another layout or dtype, kept as long as they are those of the base.

Nobody tells when a weight changes. Addresses and version counters tell most changes; one made through `.data`, as when
an adapter is merged, shows in a sample of the elements.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import nn

from .mlp_parts import MLPParts, find_parts, is_plain_linear


SAMPLES = 64


@dataclass(frozen=True)
class Fingerprint:
    """Tells whether a tensor is still the one that was copied."""

    address: int
    shape: torch.Size
    version: int
    sample: tuple[float, ...]

    @classmethod
    def of(cls, weight: torch.Tensor) -> "Fingerprint":
        """The fingerprint of a tensor as it is now."""
        flat = weight.detach().reshape(-1)
        sample = flat[:: max(1, len(flat) // SAMPLES)].tolist()
        version = 0 if weight.is_inference() else weight._version
        return cls(weight.data_ptr(), weight.shape, version, tuple(sample))


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
        return [Fingerprint.of(tensor) for source in self.parts.sources.values() for tensor in source.parameters()]

    def still_fits(self, module: nn.Module) -> bool:
        """Whether a module's weights are those that were copied."""
        sources = self.parts.sources.items()
        same = all(getattr(module, name, None) is source and is_plain_linear(source) for name, source in sources)
        return same and self._current() == self._fingerprints
