# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A last projection on a GPU that reads only the weights of the neurons that are kept.

The weights of `nn.Linear` are copied once, neuron-major; those of `Conv1D` are read where they are. The list of kept
neurons and its length stay on the device.
"""

import torch

from ....selection.channels import per_token
from ..kept_call import KeptCall
from ..projection_copy import ProjectionCopy
from ..triton_path import TritonPath
from .operation import KEPT_NEURONS


class TritonDown(ProjectionCopy):
    """The weights of a last projection on any device, and the projection over the kept neurons.

    Args:
        module (`nn.Linear` or `Conv1D`): The projection; the copy is on the same device.
    """

    def neuron_major(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.t().contiguous()

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.weight.dtype

    def compute(self, call: KeptCall) -> torch.Tensor:
        """The projection's output `(rows, ..., outputs)`."""
        return self(call.x, call.keep)

    def __call__(self, x: torch.Tensor, fraction: torch.Tensor) -> torch.Tensor:
        """The projection's output `(rows, ..., outputs)` for the largest of the neurons `(rows, ..., neurons)`.

        Args:
            x (`torch.Tensor` of shape `(rows, ..., neurons)`): Input of the projection.
            fraction (`torch.Tensor` of shape `(rows,)`): Fraction of the neurons to keep.
        """
        from ....kernels.cuda.sparse_mlp import sparse_projection

        fraction = per_token(fraction.float(), x)
        return sparse_projection(x.flatten(0, -2), fraction, self.weight, self.bias).view(*x.shape[:-1], -1)


KEPT_NEURONS.register("triton", TritonPath[KeptCall](TritonDown))
