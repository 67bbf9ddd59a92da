# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""An MLP on the CPU that reads only the weights of the input channels that are kept.

The projections before the activation are copied once, in blocks of outputs; within a block the weights of an input
channel are contiguous. The copy takes as much memory as the projections. The last projection is the base's own. The
products are computed by the compiled kernel if numba is installed, else by `embedding_bag`, which also reads only the
weights of the kept channels. Both are faster for a few tokens only.
"""

import functools
import platform
from typing import ClassVar

import torch
from torch.nn import functional

from ....kernels.cpu import sparse_mlp
from ....kernels.cpu.sparse_mlp import KeptChannels
from ...dispatch import Implementation, Prepared
from ..kept_call import MOST_TOKENS
from ..parts import ACTIVATIONS, MLPParts
from ..weight_copy import MLPCopy
from .operation import KEPT_CHANNELS, MLPCall


LEAST_WEIGHTS = 1 << 16
"""Number of an MLP's weights below which the overhead of choosing exceeds the gain."""
MOST_READ = {
    torch.float32: {1: 0.75, 2: 0.5, 3: 0.35, 4: 0.35},
    torch.bfloat16: {1: 0.5, 2: 0.35},
}
"""By dtype and number of tokens, the share of the channels up to which this is faster than to read all weights."""
IS_MEASURED = platform.machine().lower() in ("x86_64", "amd64")
"""Other processors were not measured."""


class InputMajorMLP(MLPCopy):
    """Copy of an MLP's first projections, and the MLP over the kept channels.

    Args:
        parts ([`MLPParts`]): The MLP, on the CPU.
    """

    def __init__(self, parts: MLPParts):
        super().__init__(parts)
        self.block = sparse_mlp.block_length(len(parts.gate))
        self.gate = sparse_mlp.to_blocks(parts.gate, self.block)
        self.up = None if parts.up is None else sparse_mlp.to_blocks(parts.up, self.block)
        gate_bias, up_bias, down_bias = (None if bias is None else bias.float() for bias in parts.biases)
        self.biases = gate_bias, up_bias, down_bias

    @property
    def nbytes(self) -> int:
        """Memory of the copy."""
        return self.gate.nbytes + (0 if self.up is None else self.up.nbytes)

    def __call__(self, kept: KeptChannels) -> torch.Tensor:
        """The MLP's output `(rows, ..., outputs)` for an input `(rows, ..., channels)`."""
        if sparse_mlp.supports(kept.x):
            return sparse_mlp.multiply_kept(
                kept, self.gate, self.up, self.block, self.parts.down, self.biases, self.parts.activation
            )
        return functional.linear(self.neurons(kept), self.parts.down, self.parts.biases[2])

    def neurons(self, kept: KeptChannels) -> torch.Tensor:
        """The inputs `(rows, ..., neurons)` of the last projection, rounded to the dtype of the input."""
        if sparse_mlp.supports(kept.x):
            return sparse_mlp.expand_kept(
                kept, self.gate, self.up, self.block, self.biases[:2], self.parts.activation
            ).to(kept.x.dtype)
        hidden = ACTIVATIONS[self.parts.activation](self._product(kept, self.gate, self.parts.biases[0]))
        return hidden if self.up is None else hidden * self._product(kept, self.up, self.parts.biases[1])

    def _product(self, kept: KeptChannels, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """The product of the kept channels with a copied weight, in plain torch."""
        x = kept.x.flatten(0, -2)[:, kept.listed]
        channels = kept.listed.expand(len(x), -1)
        blocks = sparse_mlp.blocks_of(weight, self.block)
        parts = [functional.embedding_bag(channels, b, mode="sum", per_sample_weights=x) for b in blocks]
        product = torch.cat(parts, dim=-1).view(*kept.x.shape[:-1], -1)
        return product if bias is None else product + bias


class InputMajor(Implementation[MLPCall]):
    """[`InputMajorMLP`], for forwards of a few tokens on the CPU, without gradient, in the dtype of the weights."""

    order: ClassVar[int] = 10

    def prepare(self, call: MLPCall) -> Prepared | None:
        copy = call.copies.copy_of(InputMajorMLP) if call.is_plain and call.tokens <= MOST_TOKENS else None
        if copy is None or copy.gate.dtype != call.x.dtype:
            return None
        if call.last is None:
            return functools.partial(copy, call.kept)
        return lambda: call.contract(copy.neurons(call.kept), copy.parts)

    def suits(self, call: MLPCall) -> bool:
        """Few enough weights are read, by compiled code. The limits were measured, see `docs/performance.md`."""
        most = MOST_READ.get(call.x.dtype, {}).get(call.tokens)
        if most is None or not call.compiles or not IS_MEASURED:
            return False
        return call.copies.weights >= LEAST_WEIGHTS and call.read_share <= most


KEPT_CHANNELS.register("input_major", InputMajor())
