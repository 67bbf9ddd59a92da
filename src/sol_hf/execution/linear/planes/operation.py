# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The product of some rows with the planes of a weight, and all of its implementations."""

from typing import NamedTuple

import torch

from ....selection.nested_planes import NestedPlanes
from ...dispatch import Operation


class PlanesCall(NamedTuple):
    """Arguments of [`nested_planes.product`].

    Args:
        x (`torch.Tensor` of shape `(rows, ..., channels)`): Input.
        planes ([`NestedPlanes`]): The weight.
        bits (`int`): Number of bits to read, the same for all rows.
        bias (`torch.Tensor` of shape `(outputs,)`, *optional*): Added to the product.
    """

    x: torch.Tensor
    planes: NestedPlanes
    bits: int
    bias: torch.Tensor | None


PLANES_PRODUCT: Operation[PlanesCall] = Operation("implementation of a product with planes", package=__package__)
"""Implementations of the product by name."""
