# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The experts of a layer over the largest channels of their input, and the largest neurons of each."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import nn

from ..plan import StepPlan
from .kept_call import HasCopies, KeptCall


class HasExperts(HasCopies, Protocol):
    """The part of a module of experts."""

    module: nn.Module
    """The module."""


@dataclass(eq=False)
class ExpertsCall:
    """The experts of a layer in a step.

    Args:
        plan ([`StepPlan`]): Backend.
        x (`torch.Tensor` of shape `(..., channels)`): Hidden states, of one token per row.
        keep (`torch.Tensor` of shape `(tokens,)`, *optional*): Fraction of the channels to keep; all by default.
        neuron_keep (`torch.Tensor` of shape `(tokens,)`, *optional*): Fraction of the neurons of each expert to keep.
        own (`Callable`): The module's own forward, with what the router has chosen.
        copies ([`HasExperts`]): The part; copies of the weights in other layouts.
        chosen (`tuple`): What the router has chosen: experts `(tokens, k)` and their weights `(tokens, k)`.
    """

    plan: StepPlan
    x: torch.Tensor
    keep: torch.Tensor | None
    neuron_keep: torch.Tensor | None
    own: Callable[[torch.Tensor], torch.Tensor]
    copies: HasExperts
    chosen: tuple[torch.Tensor, ...]

    @cached_property
    def kept(self) -> KeptCall | None:
        """The choice of channels, for tokens `(tokens, channels)`; `None` where all are read."""
        if self.keep is None:
            return None
        return KeptCall(self.plan, self.x.flatten(0, -2), self.keep, self.own, self.copies)

    def kept_input(self) -> torch.Tensor:
        """The hidden states with all but the kept channels set to zero, of the shape of `x`."""
        return self.x if self.kept is None else self.kept.kept_input().view_as(self.x)
