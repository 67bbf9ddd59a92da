# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The product of a few tokens with the weights of a linear layer, and all of its implementations."""

from typing import NamedTuple

import torch

from ..dispatch import Operation


class LinearCall(NamedTuple):
    """Arguments of `functional.linear`, of the kinds that [`supports`] allows.

    Args:
        x (`torch.Tensor` of shape `(..., channels)`): Input.
        weight (`torch.Tensor` of shape `(outputs, channels)`): As in `nn.Linear`.
        bias (`torch.Tensor` of shape `(outputs,)`, *optional*): Added to the product.
    """

    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None


LINEAR: Operation[LinearCall] = Operation("implementation of a linear layer", package=__package__)
"""Implementations of the product by name."""
