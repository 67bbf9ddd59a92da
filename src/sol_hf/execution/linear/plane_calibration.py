# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Scales of nested planes that fit the inputs of the layers, as a text shows them."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from .planed_layers import PlanedLayer


class InputSquares:
    """Sums of squares of the inputs of linear layers, by channel.

    Args:
        layers (`Sequence[PlanedLayer]`): The layers.
    """

    def __init__(self, layers: Sequence[PlanedLayer]):
        self.layers = [layer for layer in layers if layer.part is not None]
        self.sums: dict[int, torch.Tensor] = {}
        self.counts: dict[int, int] = {}

    def add(self, module: nn.Module, inputs: tuple) -> None:
        """Add the input of a layer; a forward pre-hook."""
        lines = inputs[0].detach().flatten(0, -2).double()
        key = id(module)
        self.sums[key] = self.sums.get(key, 0) + lines.square().sum(dim=0)
        self.counts[key] = self.counts.get(key, 0) + len(lines)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within the block, inputs of the layers are added."""
        with ExitStack() as stack:
            for layer in self.layers:
                stack.callback(layer.module.register_forward_pre_hook(self.add).remove)
            yield

    def choose_scales(self) -> None:
        """Let the next planes of every layer that was called fit its inputs."""
        for layer in self.layers:
            count = self.counts.get(id(layer.module), 0)
            if layer.part is not None and count:
                layer.part.choose_scales((self.sums[id(layer.module)] / count).float())


@torch.no_grad()
def calibrate(base: PreTrainedModel, layers: Sequence[PlanedLayer], input_ids: torch.LongTensor) -> None:
    """Run the base over texts, row by row, and let the next planes of its layers fit their inputs.

    Args:
        base (`PreTrainedModel`): The base, not instrumented.
        layers (`Sequence[PlanedLayer]`): Its layers that are read in planes.
        input_ids (`torch.LongTensor` of shape `(rows, length)`): Texts without padding.
    """
    squares = InputSquares(layers)
    with squares.watching():
        for row in input_ids.to(base.device):
            base(input_ids=row[None], use_cache=False)
    squares.choose_scales()
