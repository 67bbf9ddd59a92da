# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A linear layer of a step in which every row reads its weights in a number of bits of its own."""

import functools
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
    widths = tuple(None if width is None else max(width, least_bits) for width in plan.widths)
    distinct = set(widths)
    if len(distinct) > 1 and len(x) != len(widths):
        raise ValueError(
            f"A linear layer gets {len(x)} rows in a step of {len(widths)} with different numbers of bits: give all "
            "rows the same `bits`, or pass `bits_backend='fake'`."
        )
    if distinct == {None}:
        return own(x)
    read = tuple(width for width in widths if width is not None)
    if len(distinct) == 1:
        return _multiply(plan, x, planes, read[0], bias)
    if None not in distinct:
        return _multiply(plan, x, planes, read, bias)
    ours, others = _split(widths)
    output = x.new_empty(*x.shape[:-1], planes.outputs)
    output.index_copy_(0, ours, _multiply(plan, x.index_select(0, ours), planes, read, bias))
    return output.index_copy_(0, others, own(x.index_select(0, others)))


@functools.lru_cache(maxsize=16)  # all layers of a step have the same
def _split(widths: tuple[int | None, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows that read planes, and the others."""
    with torch.inference_mode(False):  # later steps may have gradients
        reads_planes = torch.tensor([width is not None for width in widths])
        return reads_planes.nonzero()[:, 0], reads_planes.logical_not().nonzero()[:, 0]


def _multiply(
    plan: AxisPlan, x: torch.Tensor, planes: NestedPlanes, bits: int | tuple[int, ...], bias: torch.Tensor | None
) -> torch.Tensor:
    """The product with rows that read planes, all of them the same number of bits or each its own."""
    output = PLANES_PRODUCT.run(PlanesCall(x, planes, bits, bias), plan.backend)
    assert output is not None, "the reference can compute every call"
    return output
