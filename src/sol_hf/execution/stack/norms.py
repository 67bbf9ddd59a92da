# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What a norm computes, found by its code and checked by its output."""

import copy
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Norm:
    """A root mean square norm, or a layer norm.

    Args:
        module (`nn.Module`): The module; its weight has one number a channel.
        offset (`float`): Added to the weight: 1 where the weight is stored as the distance from 1.
        is_centered (`bool`): Whether the mean is subtracted.
        epsilon (`float`): Added to the variance.
    """

    module: nn.Module
    offset: float
    is_centered: bool
    epsilon: float

    @property
    def weight(self) -> torch.Tensor:
        """The weight `(channels,)`."""
        weight = self.module.weight
        assert isinstance(weight, torch.Tensor)
        return weight

    @property
    def bias(self) -> torch.Tensor | None:
        """The bias `(channels,)`, `None` without one."""
        return getattr(self.module, "bias", None)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The norm of `x` `(..., channels)` in plain torch."""
        if self.is_centered:
            x = x - x.mean(-1, keepdim=True)
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.epsilon) * (self.offset + self.weight)
        return x if self.bias is None else x + self.bias


def find_norm(module: nn.Module) -> Norm | None:
    """What a norm computes; `None` if it is not of a known kind.

    A copy of it with drawn weights is compared with each kind, since a kind cannot be seen from weights that are all
    one or zero.
    """
    weight = getattr(module, "weight", None)
    epsilon = next((getattr(module, name) for name in ("variance_epsilon", "eps") if hasattr(module, name)), None)
    if not isinstance(weight, torch.Tensor) or weight.dim() != 1 or not isinstance(epsilon, float):
        return None
    if any(True for _ in module.children()) or set(module.state_dict()) - {"weight", "bias"}:
        return None
    part = vars(module).get("forward")  # while a generation runs; it cannot be copied
    drawn = copy.deepcopy(module, {id(part): None} if part is not None else {}).float()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, len(weight), generator=generator) + 0.5
    with torch.no_grad():
        for parameter in drawn.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
        expected = type(drawn).forward(drawn, x)
        for offset, is_centered in ((0.0, False), (1.0, False), (0.0, True)):
            ours = Norm(drawn, offset, is_centered, epsilon)(x)
            if expected.shape == ours.shape and torch.allclose(expected, ours, rtol=1e-4, atol=1e-5):
                return Norm(module, offset, is_centered, epsilon)
    return None
