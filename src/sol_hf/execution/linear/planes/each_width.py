# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Rows with different numbers of bits: every number of bits is computed for all rows, and each row takes its own."""

import functools
from typing import ClassVar

import torch

from ....selection.channels import per_row
from ....selection.nested_planes import WIDTHS, product
from ...dispatch import Implementation, Prepared
from .operation import PLANES_ROWS, RowsCall


class EachWidth(Implementation[RowsCall]):
    """The reference, in plain torch."""

    order: ClassVar[int] = 0

    def prepare(self, call: RowsCall) -> Prepared | None:
        return functools.partial(multiply_each_width, call)


def multiply_each_width(call: RowsCall) -> torch.Tensor:
    """The output `(rows, ..., outputs)` of a [`RowsCall`]."""
    bits, output = per_row(call.bits, call.x), call.own(call.x)
    for width in reversed([width for width in WIDTHS if width >= call.least_bits]):
        output = torch.where(bits <= width, product(call.x, call.planes, width, call.bias), output)
    return output


PLANES_ROWS.register("each_width", EachWidth())
