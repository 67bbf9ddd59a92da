# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The product of a few tokens with the weights of a linear layer, and all of its implementations."""

from collections.abc import Hashable
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

    def situation(self) -> Hashable:
        """The key for measured times: sizes of the weight, dtype, number of tokens and number of threads."""
        tokens = self.x.numel() // self.x.shape[-1]
        shape = (*self.weight.shape, self.x.dtype, tokens.bit_length())
        return "linear", shape, torch.get_num_threads()


LINEAR: Operation[LinearCall] = Operation("implementation of a linear layer", package=__package__)
"""Implementations of the product by name."""
