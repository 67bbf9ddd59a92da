# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Experts in plain torch, with the neurons that are not kept set to zero.

The neurons of an expert are numbers within its module's forward, so that this computes the forward from the layout of
the weights.
"""

import functools
from typing import ClassVar

import torch

from ....selection.channels import keep_top_channels
from ...dispatch import Implementation, Prepared
from ..expert_layout import ExpertLayout
from ..experts_call import ExpertsCall
from .operation import KEPT_EXPERTS


class ExpertNeurons(Implementation[ExpertsCall]):
    """The reference for steps that choose neurons."""

    order: ClassVar[int] = 5

    def prepare(self, call: ExpertsCall) -> Prepared | None:
        layout = ExpertLayout.of(call.copies.module) if call.neuron_keep is not None else None
        return None if layout is None else functools.partial(experts_output, call, layout)


def experts_output(call: ExpertsCall, layout: ExpertLayout) -> torch.Tensor:
    """The sum of the chosen experts' outputs, weighted by the router, of the shape of `call.x`."""
    chosen, weights = call.chosen
    tokens, each = chosen.shape
    experts, is_real = chosen.flatten().clamp(max=len(layout.first) - 1), chosen.flatten() < len(layout.first)
    x = call.kept_input().reshape(tokens, -1).repeat_interleave(each, dim=0)
    neurons = layout.neurons(layout.linear(x, layout.first, layout.biases[0], experts))
    if call.neuron_keep is not None:
        neurons = keep_top_channels(neurons, call.neuron_keep.repeat_interleave(each))
    output = layout.linear(neurons, layout.last, layout.biases[1], experts)
    if layout.finish is not None:
        output = layout.finish(output)
    output = (output * weights.flatten()[:, None]).masked_fill(~is_real[:, None], 0.0)
    return output.view(tokens, each, -1).sum(dim=1).to(call.x.dtype).view_as(call.x)


KEPT_EXPERTS.register("expert_neurons", ExpertNeurons())
