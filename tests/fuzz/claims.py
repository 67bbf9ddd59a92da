# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What an oracle says: a claim that does not hold is a violation."""

import torch


class Violation(AssertionError):
    """A promise that a case breaks."""


def claim(holds: bool | torch.Tensor, message: str, *values: object) -> None:
    """Raise a [`Violation`] unless the claim holds; `values` are added to the message."""
    if not bool(holds):
        raise Violation(" ".join([message, *map(str, values)]))


def claim_identical(first: torch.Tensor, second: torch.Tensor, message: str) -> None:
    """Raise a [`Violation`] unless two tensors agree bit for bit."""
    claim(first.shape == second.shape, f"{message}: the shapes are", tuple(first.shape), tuple(second.shape))
    if not torch.equal(first.nan_to_num(), second.nan_to_num()):
        places = (first.nan_to_num() != second.nan_to_num()).nonzero()
        worst = (first.double() - second.double()).abs().nan_to_num().max().item()
        raise Violation(f"{message}: {len(places)} values differ, the first at {places[0].tolist()}, by {worst:.3g}.")
