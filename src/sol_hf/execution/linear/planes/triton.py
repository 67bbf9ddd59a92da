# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Rows with different numbers of bits by a Triton kernel, which reads the planes that they need."""

import functools
from typing import ClassVar

import torch

from ....kernels.cuda import triton_support
from ....selection.channels import per_token
from ...dispatch import Implementation, Prepared
from .operation import PLANES_ROWS, RowsCall


MOST_TOKENS = 256
"""Number of tokens above which the weight is decoded once for all: the kernel decodes it for 16 or 32 at a time."""


class Triton(Implementation[RowsCall]):
    """A kernel for a few tokens, see `kernels/cuda/planes.py`."""

    order: ClassVar[int] = 10

    def prepare(self, call: RowsCall) -> Prepared | None:
        x, weight = call.x, call.weight
        fits = 0 < x.shape[:-1].numel() <= MOST_TOKENS and triton_support.supports(x)
        same = x.dtype == weight.dtype and x.device == weight.device == call.planes.scales.device
        return functools.partial(_multiply, call) if fits and same else None


def _multiply(call: RowsCall) -> torch.Tensor:
    from ....kernels.cuda.planes import multiply_planes

    x, planes, bits = call.x, call.planes, per_token(call.bits.float(), call.x)
    output = multiply_planes(
        x.flatten(0, -2).contiguous(),
        bits.contiguous(),
        list(planes.planes),
        planes.scales,
        call.weight.detach(),
        call.bias,
        call.least_bits,
    )
    return output.view(*x.shape[:-1], planes.outputs)


PLANES_ROWS.register("triton", Triton())
