# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The product of some rows with the planes of a weight, and all of its implementations.

There are two operations: one for rows of which the host knows how many bits they read, and one for rows of which only
the device knows how many each reads.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

from ....selection.nested_planes import NestedPlanes
from ...dispatch import Operation


class PlanesCall(NamedTuple):
    """Arguments of [`nested_planes.product`].

    Args:
        x (`torch.Tensor` of shape `(rows, ..., channels)`): Input.
        planes ([`NestedPlanes`]): The weight.
        bits (`int` or `tuple[int, ...]`): Number of bits to read, the same for all rows or one per row.
        bias (`torch.Tensor` of shape `(outputs,)`, *optional*): Added to the product.
    """

    x: torch.Tensor
    planes: NestedPlanes
    bits: int | tuple[int, ...]
    bias: torch.Tensor | None


PLANES_PRODUCT: Operation[PlanesCall] = Operation("implementation of a product with planes", package=__package__)
"""Implementations of the product by name."""


class RowsCall(NamedTuple):
    """A linear layer whose rows read as many bits as the device says.

    Args:
        x (`torch.Tensor` of shape `(rows, ..., channels)`): Input.
        bits (`torch.Tensor` of shape `(rows,)`): Levels; each is rounded up to a number of bits that can be read.
        planes ([`NestedPlanes`]): The weight in planes.
        least_bits (`int`): Fewest bits in which this layer is read.
        bias (`torch.Tensor` of shape `(outputs,)`, *optional*): The layer's bias.
        weight (`torch.Tensor` of shape `(outputs, channels)`): Its original weight, for rows above 8 bits.
        own (`Callable`): The layer with its original weight.
    """

    x: torch.Tensor
    bits: torch.Tensor
    planes: NestedPlanes
    least_bits: int
    bias: torch.Tensor | None
    weight: torch.Tensor
    own: Callable[[torch.Tensor], torch.Tensor]


PLANES_ROWS: Operation[RowsCall] = Operation("implementation of rows with planes", package=__package__)
"""Implementations of rows with different numbers of bits by name."""
