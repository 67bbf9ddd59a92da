# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Takes one action of every row by its scores."""

import torch

from .base import Controller


def refuse_nan(scores: torch.Tensor, controller: Controller) -> None:
    """Raise a ValueError for scores that are no numbers.

    Only on the CPU: on an accelerator, to look at a value would stall the device.
    """
    if scores.device.type == "cpu" and scores.numel() and bool(scores.amax().isnan()):  # NaN counts as the largest
        raise ValueError(
            f"{type(controller).__name__} returned scores that are not a number (NaN), so there is no best action: "
            "look for a division by zero, or for weights that are NaN."
        )


def best_actions(scores: torch.Tensor) -> torch.Tensor:
    """The action with the highest score in every row, `(rows,)`, from scores `(rows, n_actions)`."""
    return scores.argmax(dim=-1)


def drawn_actions(scores: torch.Tensor, temperature: float) -> torch.Tensor:
    """Actions drawn from the softmax of `scores / temperature`, `(rows,)`, from scores `(rows, n_actions)`.

    An infinite score is certain to be drawn. In a row in which every action is ruled out, all are equally likely.
    """
    scaled, best = scores / temperature, scores.amax(dim=-1, keepdim=True)
    below_best = torch.where(scores == best, 0.0, scores - best) / temperature
    weights = torch.where(scaled.amax(dim=-1, keepdim=True).isfinite(), scaled, below_best).softmax(dim=-1)
    return torch.multinomial(weights, 1).squeeze(1)
