# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""An MLP in int8: weights are rounded once, inputs at every step, and sums are exact in int32.

`bits_backend="int8"` uses it instead of fake quantization for rows of 8 bits and fewer. The approximation differs from
the published one, where the *output* of the MLP is rounded to `bits` bits. Here every weight (one scale per output)
and every input of a projection (one scale per token) is rounded to 8 bits, for any number of bits up to 8 in the plan,
and the output is not rounded. It reads a quarter of the bytes of float32 weights, half of those of bfloat16. The copy
takes one byte per weight of the MLP.

The products are computed by torch's `_int_mm`. torch's dynamically quantized linear layers are faster with one row,
but use one scale for all rows, so that the result of a row would depend on the other rows.
"""

import torch

from ...selection.channels import keep_top_channels
from .parts import ACTIVATIONS, MLPParts
from .weight_copy import MLPCopy


INT8_BITS = 8
LARGEST = 127


def quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Symmetric int8 quantization of every row of a matrix `x` `(n, m)`, each with a scale of its own.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: int8 numbers of the shape of `x`, and scales `(n, 1)` in float32.
    """
    values = x.float()
    scale = values.abs().amax(dim=-1, keepdim=True).clamp(min=1e-8) / LARGEST
    return torch.round(values / scale).to(torch.int8), scale


class Int8Linear:
    """A projection with int8 weights.

    Args:
        weight (`torch.Tensor` of shape `(outputs, inputs)`): The weights to quantize.
        bias (`torch.Tensor` of shape `(outputs,)`, *optional*): Added in float32.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None):
        self.weight, scale = quantize_rows(weight.detach())
        self.scale = scale.squeeze(1)
        self.bias = None if bias is None else bias.detach().float()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The product for `x` `(tokens, inputs)`, `(tokens, outputs)` in float32."""
        numbers, scale = quantize_rows(x)
        product = torch._int_mm(numbers, self.weight.t()).float() * scale * self.scale
        return product if self.bias is None else product + self.bias


class Int8MLP(MLPCopy):
    """int8 copy of an MLP.

    Args:
        parts ([`MLPParts`]): The MLP, on the CPU.
    """

    def __init__(self, parts: MLPParts):
        super().__init__(parts)
        self.gate = Int8Linear(parts.gate, parts.biases[0])
        self.up = None if parts.up is None else Int8Linear(parts.up, parts.biases[1])
        self.down = Int8Linear(parts.down, parts.biases[2])

    @property
    def nbytes(self) -> int:
        """Memory of the copy."""
        copies = (self.gate, self.up, self.down)
        return sum(copy.weight.nbytes + copy.scale.nbytes for copy in copies if copy is not None)

    def __call__(self, x: torch.Tensor, neuron_keep: torch.Tensor | None = None) -> torch.Tensor:
        """The MLP's output `(rows, ..., outputs)` for an input `(rows, ..., channels)`, in the dtype of `x`.

        Args:
            x (`torch.Tensor` of shape `(rows, ..., channels)`): Input of the MLP.
            neuron_keep (`torch.Tensor` of shape `(rows,)`, *optional*): Fraction of the neurons to keep.
        """
        tokens = x.flatten(0, -2)
        hidden = ACTIVATIONS[self.parts.activation](self.gate(tokens))
        if self.up is not None:
            hidden = hidden * self.up(tokens)
        if neuron_keep is not None:
            hidden = keep_top_channels(hidden.view(*x.shape[:-1], -1), neuron_keep).flatten(0, -2)
        return self.down(hidden).view(*x.shape[:-1], -1).to(x.dtype)
