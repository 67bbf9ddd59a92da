# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A module of an MLP over the largest channels of its input."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch

from ...kernels.cpu import sparse_mlp
from ...kernels.cpu.sparse_mlp import KeptChannels
from ...selection.channels import keep_top_channels, kept_channels
from ..plan import StepPlan
from .copying_part import Copy


MOST_TOKENS = 8
"""Number of tokens in a forward above which all weights are read."""


class HasCopies(Protocol):
    """An object with copies of a module's weights: its [`CopyingPart`]."""

    weights: int
    """Their number."""

    def copy_of(self, kind: type[Copy]) -> Copy | None:
        """The copy of a kind, made now if there is none; `None` if the module is not of a known kind."""


@dataclass(eq=False)
class KeptCall:
    """One module over the largest channels of its input: a whole MLP, or its last projection over neurons.

    Args:
        plan ([`StepPlan`]): Backend.
        x (`torch.Tensor` of shape `(rows, ..., channels)`): Input of the module.
        keep (`torch.Tensor` of shape `(rows,)`): Fraction of the channels to keep.
        own (`Callable`): The module's own forward.
        copies ([`HasCopies`]): Copies of its weights in other layouts.
    """

    plan: StepPlan
    x: torch.Tensor
    keep: torch.Tensor
    own: Callable[[torch.Tensor], torch.Tensor]
    copies: HasCopies

    @property
    def tokens(self) -> int:
        """Tokens in the forward."""
        return self.x.shape[:-1].numel()

    @property
    def is_plain(self) -> bool:
        """Whether the input is on the CPU, without gradient and autocast."""
        return not (self.x.device.type != "cpu" or self.x.requires_grad or torch.is_autocast_enabled("cpu"))

    @property
    def compiles(self) -> bool:
        """Whether compiled code chooses the channels."""
        is_in_memory = type(self.x) is torch.Tensor  # a subclass may have nothing at its address
        return is_in_memory and self.plan.backend != "reference" and sparse_mlp.supports(self.x)

    @cached_property
    def kept(self) -> KeptChannels:
        """The input with all but the kept channels set to zero, and a list of the channels that any token keeps."""
        if self.compiles:
            return sparse_mlp.keep_top_channels(self.x, self.keep)
        return keep_channels(self.x, kept_channels(self.x, self.keep))

    def kept_input(self) -> torch.Tensor:
        """The input with all but the kept channels set to zero, of the shape of `x`.

        Without compiled code no list of the kept channels is made, since that would stall an accelerator.
        """
        if self.compiles or "kept" in vars(self):
            return self.kept.x
        return keep_top_channels(self.x, self.keep)

    @property
    def read_share(self) -> float:
        """Share of the channels that any token keeps, so that their weights have to be read."""
        return len(self.kept.listed) / self.x.shape[-1]


def keep_channels(x: torch.Tensor, mask: torch.Tensor) -> KeptChannels:
    """[`KeptChannels`] of an input `(rows, ..., channels)` and a mask of that shape, in plain torch."""
    listed = mask.flatten(0, -2).any(dim=0).nonzero().squeeze(1)
    return KeptChannels(torch.where(mask, x, 0), listed.int())
