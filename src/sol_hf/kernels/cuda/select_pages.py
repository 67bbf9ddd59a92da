# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Triton: the largest entries of every list of numbers, where the number of entries is known on the device only.

It is used for two axes: for the pages with the highest scores (`token_keep`) and for the channels of largest magnitude
(`mlp_keep`). The number of entries is computed in the kernel from the row's fraction, so no value is copied to the
host.

One program processes a whole list. It finds the smallest value to keep, two bits per round. Floats are compared as
unsigned integers of the same order. Each round counts the entries at or above three trial values; there are 16 rounds
for float32, 8 for bfloat16. Sorting the list, which `topk` with an unknown count would require, moves it several
times. The indices are ascending, so that the chosen entries are then read from memory in one direction.
"""

import torch
import triton
import triton.language as tl

from ...selection.channels import kept_count, largest
from . import triton_support


@triton.jit
def wanted_units(fraction, count, UNIT: tl.constexpr):
    """`ceil(ceil(fraction * count) / UNIT)`, at least 1, as in [`pages_for`]; `count` is an int32."""
    tokens = tl.maximum(tl.ceil(fraction * count.to(tl.float32) * 0.999999), 1.0).to(tl.int32)
    return (tl.minimum(tokens, count) + UNIT - 1) // UNIT


@triton.jit
def _ordered(x):
    """Unsigned integers with the same order as the floats `x`; NaN is above infinity, -0 equals 0."""
    bits = tl.where(x == 0, 0.0, x).to(tl.uint32, bitcast=True)
    return tl.where(bits >= 0x80000000, bits ^ 0xFFFFFFFF, bits | 0x80000000)


@triton.jit
def _select_largest(
    values, fraction, count, chosen, chosen_count, lines_per_row, length, UNIT: tl.constexpr, ABSOLUTE: tl.constexpr,
    ROUNDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    line = tl.program_id(0)
    row = line // lines_per_row
    keys = tl.load(count + row).to(tl.int32)
    wanted = wanted_units(tl.load(fraction + row).to(tl.float32), keys, UNIT)
    units = (keys + UNIT - 1) // UNIT
    place = tl.arange(0, BLOCK)
    live = place < units
    line_begin = line.to(tl.int64) * length
    if wanted < units:
        x = tl.load(values + line_begin + place, mask=live, other=0.0).to(tl.float32)
        if ABSOLUTE:
            x = tl.abs(x)
        order = _ordered(x) >> (32 - 2 * ROUNDS)  # the lower digits of a 16-bit dtype are zero
        least = tl.full((), 0, tl.uint32)
        bit = tl.full((), 1, tl.uint32) << (2 * ROUNDS - 2)
        for _ in range(ROUNDS):
            # Three counts of at most 2^16 each are added up in one int64.
            one = (live & (order >= least + bit)).to(tl.int64)
            two = (live & (order >= least + 2 * bit)).to(tl.int64)
            three = (live & (order >= least + 3 * bit)).to(tl.int64)
            counts = tl.sum(one + (two << 20) + (three << 40), axis=0)
            least = tl.where((counts & 0xFFFFF) >= wanted, least + bit, least)
            least = tl.where(((counts >> 20) & 0xFFFFF) >= wanted, least + bit, least)
            least = tl.where((counts >> 40) >= wanted, least + bit, least)
            bit = bit >> 2
        larger, equal = live & (order > least), live & (order == least)
        # Running counts of entries above and equal to the value, two numbers below 2^16 in one scan.
        counts = tl.cumsum(larger.to(tl.uint32) + (equal.to(tl.uint32) << 16), axis=0)
        larger_so_far, equal_so_far = (counts & 0xFFFF).to(tl.int32), (counts >> 16).to(tl.int32)
        spare = wanted - tl.max(larger_so_far, axis=0)
        taken = larger | (equal & (equal_so_far <= spare))
        target = larger_so_far + tl.minimum(equal_so_far, spare) - 1
        tl.store(chosen + line_begin + target, place, mask=taken)
    else:
        tl.store(chosen + line_begin + place, place, mask=live)
    tl.store(chosen_count + line, wanted)


MOST_ENTRIES = (1 << 16) - 1
ROUNDS = {torch.float32: 16, torch.float16: 10, torch.bfloat16: 8}
"""Rounds per dtype: half the number of bits in which its values, converted to float32, can differ."""


@torch.library.custom_op("sol_hf::select_largest", mutates_args=())
def select_largest(
    values: torch.Tensor, fraction: torch.Tensor, count: torch.Tensor, unit: int, absolute: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of the largest entries of every list, ascending; of equal ones, the first.

    Args:
        values (`torch.Tensor` of shape `(rows, lists, length)`): Numbers to choose from. Entry `i` belongs
            to the keys `i * unit` to `i * unit + unit - 1`; entries without keys are left out.
        fraction (`torch.Tensor` of shape `(rows,)`): Fraction of the keys to keep.
        count (`torch.Tensor` of shape `(rows,)`): Keys of a row.
        unit (`int`): Keys in an entry: the page size, or 1.
        absolute (`bool`): Whether magnitudes are compared.

    Returns:
        Two `torch.Tensor` of int32: the indices, of the shape of `values`, and their number, of shape
        `(rows, lists)`. Entries after that number are uninitialized.
    """
    rows, lines, length = values.shape
    values, fraction, count = values.contiguous(), fraction.contiguous(), count.contiguous()
    chosen = torch.empty(values.shape, dtype=torch.int32, device=values.device)
    chosen_count = torch.empty(rows, lines, dtype=torch.int32, device=values.device)
    if length > MOST_ENTRIES:
        raise ValueError(f"At most {MOST_ENTRIES} entries can be chosen from, got {length}.")
    block = triton.next_power_of_2(length)
    warps = min(max(block // 512, 1), 16)
    with triton_support.on_device_of(values):
        _select_largest[(rows * lines,)](
            values, fraction, count, chosen, chosen_count, lines, length, unit, absolute, ROUNDS[values.dtype], block,
            num_warps=warps,
        )  # fmt: skip
    return chosen, chosen_count


@select_largest.register_fake
def _(values, fraction, count, unit, absolute):
    return values.new_empty(values.shape, dtype=torch.int32), values.new_empty(values.shape[:2], dtype=torch.int32)


def select_largest_reference(
    values: torch.Tensor, fraction: torch.Tensor, count: torch.Tensor, unit: int, absolute: bool
) -> torch.Tensor:
    """The choice of [`select_largest`] in plain torch, as a mask of the shape of `values`."""
    tokens = kept_count(fraction, count)
    wanted = torch.div(tokens + (unit - 1), unit, rounding_mode="floor")
    live = torch.arange(values.shape[-1], device=values.device) * unit < count[:, None, None]
    ranked = (values.abs() if absolute else values).float().masked_fill(~live, float("-inf"))
    return largest(ranked, wanted) & live
