# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The product by oneDNN, which is part of torch; for bfloat16 torch uses it by default."""

import functools
from typing import ClassVar

import torch

from ..dispatch import Implementation, Prepared
from .operation import LINEAR, LinearCall


def has_onednn() -> bool:
    """Whether torch was built with oneDNN and has it enabled."""
    return torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)


def multiply(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`functional.linear` by oneDNN, for arguments that [`supports`] allows.

    Args:
        x (`torch.Tensor` of shape `(..., channels)`): Input.
        weight (`torch.Tensor` of shape `(outputs, channels)`): As in `nn.Linear`.
        bias (`torch.Tensor` of shape `(outputs,)`, *optional*): Added to the product.

    Returns:
        `torch.Tensor` of shape `(..., outputs)`.
    """
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class OneDNN(Implementation[LinearCall]):
    """oneDNN in float32. In bfloat16 `functional.linear` uses oneDNN already."""

    order: ClassVar[int] = 10

    def prepare(self, call: LinearCall) -> Prepared | None:
        if call.x.dtype != torch.float32 or not has_onednn():
            return None
        return functools.partial(multiply, *call)


LINEAR.register("onednn", OneDNN())
