# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A linear layer of a step in which every row reads its weights in a number of bits of its own."""

from collections.abc import Callable

import torch

from ....kernels.cuda import triton_support
from ....selection.nested_planes import NestedPlanes
from ...axis_plan import AxisPlan
from .operation import PLANES_PRODUCT, PLANES_ROWS, PlanesCall, RowsCall


def multiply_rows(
    plan: AxisPlan,
    x: torch.Tensor,
    planes: NestedPlanes,
    least_bits: int,
    bias: torch.Tensor | None,
    weight: torch.Tensor,
    own: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """The layer's output `(rows, ..., outputs)` for an input `(rows, ..., channels)`.

    On an accelerator the numbers of bits are not read by the host, which would stall it.

    Args:
        plan ([`AxisPlan`]): Its `bits` are the levels of the rows.
        x (`torch.Tensor` of shape `(rows, ..., channels)`): Input.
        planes ([`NestedPlanes`]): Planes of the weight.
        least_bits (`int`): Fewest bits in which this layer is read.
        bias (`torch.Tensor` of shape `(outputs,)`, *optional*): The layer's bias.
        weight (`torch.Tensor` of shape `(outputs, channels)`): The original weight, for rows above 8 bits.
        own (`Callable`): The layer with its original weight.

    Raises:
        ValueError: if the input is not one of the rows of the step, and they read different numbers of bits.
    """
    if x.device.type != "cpu" or triton_support.supports(x):
        bits = plan.levels["bits"].to(x.device)
        if len(bits) != len(x):
            bits = bits.repeat_interleave(len(x) // len(bits))
        output = PLANES_ROWS.run(RowsCall(x, bits, planes, least_bits, bias, weight, own), plan.backend)
        assert output is not None, "the reference can compute every call"
        return output
    widths = [None if width is None else max(width, least_bits) for width in plan.widths]
    distinct = sorted(set(widths), key=lambda width: width or 0)
    if len(distinct) > 1 and len(x) != len(widths):
        raise ValueError(
            f"A linear layer gets {len(x)} rows in a step of {len(widths)} with different numbers of bits: give all "
            "rows the same `bits`, or pass `bits_backend='fake'`."
        )
    if len(distinct) == 1:
        return _multiply(plan, x, planes, distinct[0], bias, own)
    output = x.new_empty(*x.shape[:-1], planes.outputs)
    for width in distinct:
        rows = torch.tensor([row for row, read in enumerate(widths) if read == width])
        output[rows] = _multiply(plan, x[rows], planes, width, bias, own)
    return output


def _multiply(
    plan: AxisPlan,
    x: torch.Tensor,
    planes: NestedPlanes,
    width: int | None,
    bias: torch.Tensor | None,
    own: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    if width is None:
        return own(x)
    output = PLANES_PRODUCT.run(PlanesCall(x, planes, width, bias), plan.backend)
    assert output is not None, "the reference can compute every call"
    return output
