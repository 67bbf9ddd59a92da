# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A last projection on a GPU that reads only the weights of the neurons that are kept.

The weights of `nn.Linear` are copied once, neuron-major; those of `Conv1D` are read where they are. The list of kept
neurons and its length stay on the device.
"""

import functools
from typing import ClassVar

import torch

from ....kernels.cuda import triton_support
from ...dispatch import Implementation, Prepared
from ..kept_call import MOST_TOKENS, KeptCall
from ..projection_copy import ProjectionCopy
from .operation import KEPT_NEURONS


class TritonDown(ProjectionCopy):
    """The weights of a last projection on any device, and the projection over the kept neurons.

    Args:
        module (`nn.Linear` or `Conv1D`): The projection; the copy is on the same device.
    """

    def neuron_major(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.t().contiguous()

    def __call__(self, x: torch.Tensor, fraction: torch.Tensor) -> torch.Tensor:
        """The projection's output `(rows, ..., outputs)` for the largest of the neurons `(rows, ..., neurons)`.

        Args:
            x (`torch.Tensor` of shape `(rows, ..., neurons)`): Input of the projection.
            fraction (`torch.Tensor` of shape `(rows,)`): Fraction of the neurons to keep.
        """
        from ....kernels.cuda.sparse_mlp import sparse_projection

        tokens = x.flatten(0, -2)
        each = len(tokens) // len(x)
        fraction = fraction.float() if each == 1 else fraction.float().repeat_interleave(each)
        return sparse_projection(tokens, fraction, self.weight, self.bias).view(*x.shape[:-1], -1)


class Triton(Implementation[KeptCall]):
    """[`TritonDown`], for forwards of a few tokens.

    Its copy of the weights may not fit into memory, so only `backend="fast"` makes it.
    """

    order: ClassVar[int] = 20

    def prepare(self, call: KeptCall) -> Prepared | None:
        few = call.tokens <= MOST_TOKENS and triton_support.supports(call.x)
        copy = call.copies.copy_of(TritonDown) if few else None
        if copy is None or copy.weight.dtype != call.x.dtype:
            return None
        return functools.partial(copy, call.x, call.keep)

    def suits(self, call: KeptCall) -> bool:
        return False


KEPT_NEURONS.register("triton", Triton())
