# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A last projection on the CPU that reads only the weights of the neurons that are kept.

The weights of `nn.Linear` are copied once, in blocks of outputs; within a block the weights of a neuron are
contiguous. Those of `Conv1D` are contiguous as they are, and are not copied. The product is computed by the compiled
kernel if numba is installed, else by `embedding_bag`. Both are faster for a few tokens only.
"""

import functools
import platform
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from ....kernels.cpu import sparse_mlp
from ....kernels.cpu.sparse_mlp import KeptChannels
from ...dispatch import Implementation, Prepared
from ..kept_call import MOST_TOKENS, KeptCall
from ..projection_copy import ProjectionCopy
from .operation import KEPT_NEURONS


LEAST_WEIGHTS = 1 << 16
"""Number of the projection's weights below which the overhead of choosing exceeds the gain."""
MOST_READ: dict[torch.dtype, dict[int, float]] = {torch.float32: {1: 0.6}, torch.bfloat16: {1: 0.5}}
"""By dtype and number of tokens, the share of the neurons up to which this is faster than to read all weights."""
IS_MEASURED = platform.machine().lower() in ("x86_64", "amd64")
"""Other processors were not measured."""


class NeuronMajor(ProjectionCopy):
    """The weights of a last projection on the CPU, and the projection over the kept neurons.

    Args:
        module (`nn.Linear` or `Conv1D`): The projection.
    """

    device = "cpu"

    def __init__(self, module: nn.Linear | Conv1D):
        super().__init__(module)
        self._wide_bias = None if self.bias is None else self.bias.float()

    def neuron_major(self, weight: torch.Tensor) -> torch.Tensor:
        self.block = sparse_mlp.block_length(len(weight))
        return sparse_mlp.to_blocks(weight, self.block)

    def __call__(self, kept: KeptChannels) -> torch.Tensor:
        """The projection's output `(rows, ..., outputs)` for neurons `(rows, ..., neurons)`."""
        if sparse_mlp.supports(kept.x):
            return sparse_mlp.project_kept(kept, self.weight, self._wide_bias, None if self.in_place else self.block)
        x = kept.x.flatten(0, -2)[:, kept.listed]
        neurons = kept.listed.expand(len(x), -1)
        blocks = [self.weight] if self.in_place else sparse_mlp.blocks_of(self.weight, self.block)
        parts = [functional.embedding_bag(neurons, b, mode="sum", per_sample_weights=x) for b in blocks]
        product = torch.cat(parts, dim=-1).view(*kept.x.shape[:-1], -1)
        return product if self.bias is None else product + self.bias


class NeuronMajorPath(Implementation[KeptCall]):
    """[`NeuronMajor`], for forwards of a few tokens on the CPU, without gradient, in the dtype of the weights."""

    order: ClassVar[int] = 10

    def prepare(self, call: KeptCall) -> Prepared | None:
        copy = call.copies.copy_of(NeuronMajor) if call.is_plain and call.tokens <= MOST_TOKENS else None
        if copy is None or copy.weight.dtype != call.x.dtype:
            return None
        return functools.partial(copy, call.kept)

    def suits(self, call: KeptCall) -> bool:
        """Few enough weights are read, by compiled code. The limits were measured, see `docs/performance.md`."""
        most = MOST_READ.get(call.x.dtype, {}).get(call.tokens)
        if most is None or not call.compiles or not IS_MEASURED:
            return False
        return call.copies.weights >= LEAST_WEIGHTS and call.read_share <= most


KEPT_NEURONS.register("neuron_major", NeuronMajorPath())
