# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Compares two computations of the same logits, of which rounding may have flipped a choice in one.

In float64 rounding flips nothing. In float32 the two may rank two pages, two channels or two quantized values
differently if these are closer to one another than rounding. Then the logits differ by much from that step on. Such a
difference is a tie only if the same computation with noise of the size of rounding in its weights has it, too: a wrong
result does not come and go with noise.
"""

import copy
from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from fuzz.case import Case
from fuzz.claims import Violation, claim


TOLERANCE = {"float64": 1e-6, "float32": 1e-4}
"""Largest difference of logits, as a share of the largest of a row's logits if that is above 1. The logits that
transformers' generate returns are in float32."""
NOISE, TRIES = 1e-6, 12


def noisy(base: PreTrainedModel, seed: int) -> PreTrainedModel:
    """A copy of a base whose weights differ by relative noise of the size of rounding."""
    noisy_base, generator = copy.deepcopy(base), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in noisy_base.parameters():
            parameter.mul_(1 + NOISE * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return noisy_base


def first_difference(first: torch.Tensor, second: torch.Tensor, steps: torch.Tensor, tolerance: float) -> list[int]:
    """For every row the first step at which logits `(rows, steps, vocab)` differ; the number of steps if none does.

    Args:
        first (`torch.Tensor`): Of one computation.
        second (`torch.Tensor`): Of the other.
        steps (`torch.BoolTensor` of shape `(rows, steps)`): The steps to compare.
        tolerance (`float`): See `TOLERANCE`.
    """
    size = first.abs().nan_to_num(posinf=0.0).amax(dim=-1).clamp(min=1)
    far = (first - second).abs().nan_to_num().amax(dim=-1) > tolerance * size
    strange = (first.isnan() != second.isnan()).any(dim=-1)
    differ = (far | strange) & steps
    return [int(row.nonzero()[0]) if bool(row.any()) else len(row) for row in differ]


def claim_close(
    case: Case,
    message: str,
    logits: torch.Tensor,
    expected: torch.Tensor,
    steps: torch.Tensor,
    again: Callable[[PreTrainedModel], torch.Tensor] | None = None,
    base: PreTrainedModel | None = None,
) -> None:
    """Raise a [`Violation`] unless two computations of logits agree up to rounding.

    Args:
        case ([`Case`]): In float64 or float32.
        message (`str`): What differs.
        logits (`torch.Tensor` of shape `(rows, steps, vocab)`): To be judged.
        expected (`torch.Tensor` of shape `(rows, steps, vocab)`): What they should be.
        steps (`torch.BoolTensor` of shape `(rows, steps)`): The steps to compare.
        again (`Callable`, *optional*): Computes `expected` on another base; without it, no tie is excused.
        base (`PreTrainedModel`, *optional*): The base of `expected`, for `again`.
    """
    claim(logits.shape == expected.shape, f"{message}: the shapes are", tuple(logits.shape), tuple(expected.shape))
    tolerance = TOLERANCE[case.dtype]
    logits, expected = logits.double(), expected.double()
    found = first_difference(logits, expected, steps, tolerance)
    wrong = {row: step for row, step in enumerate(found) if step < steps.shape[1]}
    if not wrong:
        return
    if not case.is_exact and again is not None:
        for seed in range(TRIES):
            other = again(noisy(base, seed)).double()
            by_noise = first_difference(other, expected, steps, tolerance)
            wrong = {row: step for row, step in wrong.items() if by_noise[row] > step}
            if not wrong:
                return
    row, step = next(iter(wrong.items()))
    by = (logits[row, step] - expected[row, step]).abs().max().item()
    raise Violation(f"{message}: the logits of row {row} differ from step {step} on, there by {by:.3g}")
