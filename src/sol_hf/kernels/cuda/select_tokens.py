# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Triton: the highest of long lists of scores, where several lists may share their number, which the device knows.

`select_pages` chooses within one program, which cannot hold the tokens of all heads of a layer. Here many programs
count how often each value of a digit occurs, for the highest 11 bits of the scores, then the next 11 among those that
begin as the smallest score to keep does, then the last 10. That score is then known, and one program a list writes the
places of the scores above it. Scores are compared as unsigned integers of the same order.
"""

import torch
import triton
import triton.language as tl

from ...selection.channels import largest
from . import triton_support
from .select_pages import _ordered as ordered


BINS = tl.constexpr(2048)
BLOCK = 2048


@triton.jit
def _shift(PASS: tl.constexpr):
    """Where the digit of a pass begins in a score: at bit 21, 10 or 0."""
    return 21 - 11 * PASS if PASS < 2 else 0


@triton.jit
def _picked(bins, remaining):
    """The digit of the smallest score to keep, how many are left to take among those with it, and their number."""
    digit = tl.arange(0, BINS)
    counts = tl.load(bins + digit)
    from_here = tl.sum(counts, axis=0) - tl.cumsum(counts, axis=0) + counts
    picked = tl.max(tl.where(from_here >= remaining, digit, 0), axis=0)
    above = tl.sum(tl.where(digit > picked, counts, 0), axis=0)
    return picked, remaining - above, tl.sum(tl.where(digit == picked, counts, 0), axis=0)


@triton.jit
def _least_kept(bins, remaining, PASSES: tl.constexpr):
    """The first digits of the smallest score to keep, and how many scores are left to take among those with them."""
    least = tl.full((), 0, tl.uint32)
    same = remaining * 0
    for number in tl.static_range(PASSES):
        picked, remaining, same = _picked(bins + number * BINS, remaining)
        least = least | (picked.to(tl.uint32) << _shift(number))
    return least, remaining, same


@triton.jit
def _count_digits(
    scores, wanted, count, bins, lists, slots, POOL: tl.constexpr, PASS: tl.constexpr, BLOCK: tl.constexpr
):
    line, row = tl.program_id(0).to(tl.int64), tl.program_id(0) // lists
    held, number = tl.load(count + row).to(tl.int32), tl.load(wanted + row).to(tl.int32)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    if (number < held) & (tl.program_id(1) * BLOCK < held):
        mine = bins + line // POOL * 3 * BINS
        live = place < held
        order = ordered(tl.load(scores + line * slots + place, mask=live, other=0.0))
        if PASS > 0:
            least, _, _ = _least_kept(mine, number * POOL, PASS)
            live = live & ((order >> _shift(PASS - 1)) == (least >> _shift(PASS - 1)))
        digit = ((order >> _shift(PASS)) & (BINS - 1 if PASS < 2 else 1023)).to(tl.int32)
        found = tl.histogram(tl.where(live, digit, 0), BINS)
        each = tl.arange(0, BINS)
        found = found - tl.where(each == 0, BLOCK - tl.sum(live.to(tl.int32), axis=0), 0)
        tl.atomic_add(mine + PASS * BINS + each, found, mask=found > 0)


@triton.jit
def _list_tokens(
    scores, wanted, count, bins, chosen, chosen_count, lists, slots, POOL: tl.constexpr, BLOCK: tl.constexpr
):
    line, row = tl.program_id(0).to(tl.int64), tl.program_id(0) // lists
    held, number = tl.load(count + row).to(tl.int32), tl.load(wanted + row).to(tl.int32)
    place = tl.arange(0, BLOCK)
    if number < held:
        least, spare, same = _least_kept(bins + line // POOL * 3 * BINS, number * POOL, 3)
        if spare < same:  # of equal scores, those of earlier lists come first
            for other in range(line // POOL * POOL, line):
                for begin in range(0, held, BLOCK):
                    live = begin + place < held
                    order = ordered(tl.load(scores + other * slots + begin + place, mask=live, other=0.0))
                    spare -= tl.sum((live & (order == least)).to(tl.int32), axis=0)
        spare = tl.maximum(spare, 0)
        written = held * 0
        for begin in range(0, held, BLOCK):
            live = begin + place < held
            order = ordered(tl.load(scores + line * slots + begin + place, mask=live, other=0.0))
            equal = (live & (order == least)).to(tl.int32)
            taken = (live & (order > least)) | ((equal > 0) & (tl.cumsum(equal, axis=0) <= spare))
            target = written + tl.cumsum(taken.to(tl.int32), axis=0) - 1
            tl.store(chosen + line * slots + target, begin + place, mask=taken)
            written += tl.sum(taken.to(tl.int32), axis=0)
            spare = tl.maximum(spare - tl.sum(equal, axis=0), 0)
        tl.store(chosen_count + line, written)
    else:
        for begin in range(0, held, BLOCK):
            tl.store(chosen + line * slots + begin + place, begin + place, mask=begin + place < held)
        tl.store(chosen_count + line, held)


@torch.library.custom_op("sol_hf::select_tokens", mutates_args=())
def select_tokens(
    scores: torch.Tensor, wanted: torch.Tensor, count: torch.Tensor, pool: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Places of the highest scores of every list, ascending; of equal ones, the first, those of earlier lists first.

    Args:
        scores (`torch.Tensor` of shape `(rows, lists, slots)`): Scores in float32, of every row's first `count`.
        wanted (`torch.Tensor` of shape `(rows,)`): Number that a list chooses, on average over `pool` lists.
        count (`torch.Tensor` of shape `(rows,)`): Scores of a row's lists.
        pool (`int`): Lists that choose together, a divisor of `lists`.

    Returns:
        Two `torch.Tensor` of int32: the places, of the shape of `scores`, and their number, of shape
        `(rows, lists)`. Entries after that number are uninitialized.
    """
    rows, lists, slots = scores.shape
    scores, wanted, count = scores.contiguous(), wanted.contiguous(), count.contiguous()
    chosen = torch.empty(scores.shape, dtype=torch.int32, device=scores.device)
    chosen_count = torch.empty(rows, lists, dtype=torch.int32, device=scores.device)
    bins = torch.zeros(rows, lists // pool, 3, BINS.value, dtype=torch.int32, device=scores.device)
    with triton_support.on_device_of(scores):
        for number in range(3):
            _count_digits[(rows * lists, triton.cdiv(slots, BLOCK))](
                scores, wanted, count, bins, lists, slots, pool, number, BLOCK
            )
        _list_tokens[(rows * lists,)](scores, wanted, count, bins, chosen, chosen_count, lists, slots, pool, BLOCK)
    return chosen, chosen_count


@select_tokens.register_fake
def _(scores, wanted, count, pool):
    return scores.new_empty(scores.shape, dtype=torch.int32), scores.new_empty(scores.shape[:2], dtype=torch.int32)


def select_tokens_reference(
    scores: torch.Tensor, wanted: torch.Tensor, count: torch.Tensor, pool: int
) -> torch.Tensor:
    """The choice of [`select_tokens`] in plain torch, as a mask of the shape of `scores`."""
    mask = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    for row, held in enumerate(count.tolist()):
        pooled = scores[row, :, :held].unflatten(0, (-1, pool))
        number = wanted[row].clamp(max=held) * pool
        chosen = largest(pooled.flatten(1), number.expand(len(pooled)))
        mask[row, :, :held] = chosen.view_as(pooled).flatten(0, 1)
    return mask
