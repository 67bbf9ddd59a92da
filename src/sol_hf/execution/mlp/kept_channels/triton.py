# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""An MLP on a GPU that reads only the weights of the input channels that are kept.

The projections before the activation are copied once, input-major; the copy takes as much memory as they do. The list
of kept channels and its length stay on the device. The last projection is the base's own.
"""

from typing import Self

import torch
from torch import nn

from ....selection.channels import per_token
from ..parts import MLPParts, find_parts
from ..triton_path import TritonPath
from ..weight_copy import MLPCopy
from .operation import KEPT_CHANNELS, MLPCall


class TritonMLP(MLPCopy):
    """Input-major copy of an MLP's first projections, and the MLP over the kept channels.

    Args:
        parts ([`MLPParts`]): The MLP; the copy is on the same device.
    """

    def __init__(self, parts: MLPParts):
        super().__init__(parts)
        self.gate = parts.gate.t().contiguous()
        self.up = None if parts.up is None else parts.up.t().contiguous()

    @classmethod
    def of(cls, module: nn.Module) -> Self | None:
        """The copy for an MLP; `None` if its parts are not of a known kind, or only one of gate and up has a bias."""
        parts = find_parts(module)
        if parts is None or (parts.up is not None and (parts.biases[0] is None) != (parts.biases[1] is None)):
            return None
        return cls(parts)

    @property
    def nbytes(self) -> int:
        """Memory of the copy."""
        return self.gate.nbytes + (0 if self.up is None else self.up.nbytes)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.gate.dtype

    def compute(self, call: MLPCall) -> torch.Tensor:
        """The MLP's output `(rows, ..., outputs)`."""
        return call.contract(self.neurons(call.x, call.keep), self.parts)

    def neurons(self, x: torch.Tensor, fraction: torch.Tensor) -> torch.Tensor:
        """The inputs `(rows, ..., neurons)` of the last projection for the largest channels of an MLP's input.

        Args:
            x (`torch.Tensor` of shape `(rows, ..., channels)`): Input of the MLP.
            fraction (`torch.Tensor` of shape `(rows,)`): Fraction of the channels to keep.
        """
        from ....kernels.cuda.sparse_mlp import sparse_gate_up

        parts, fraction = self.parts, per_token(fraction.float(), x)
        hidden = sparse_gate_up(x.flatten(0, -2), fraction, self.gate, self.up, *parts.biases[:2], parts.activation)
        return hidden.view(*x.shape[:-1], -1)


KEPT_CHANNELS.register("triton", TritonPath[MLPCall](TritonMLP))
