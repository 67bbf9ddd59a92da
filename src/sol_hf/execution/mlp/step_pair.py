# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""An MLP of two projections without a module of its own: the first keeps channels, the last neurons, and rounds."""

import torch

from ...selection.quantizers import fake_quantize
from ..plan import ACTIVE
from .step_down import StepDown


class StepFirst(StepDown):
    """The first projection: reads the largest channels of the hidden state (`mlp_keep`)."""

    axis = "mlp_keep"
    change_name = "first projection"


class StepLast(StepDown):
    """The last projection: reads the largest neurons (`neuron_keep`), and rounds the MLP's output (`bits`)."""

    def __call__(self, *args: torch.Tensor, **kwargs: torch.Tensor) -> torch.Tensor:
        output, context = super().__call__(*args, **kwargs), ACTIVE.get()
        plan = None if context is None else context.plan
        if plan is None or "bits" not in plan.levels:
            return output
        plan.mark_done("bits", self)
        if plan.reads_planes:  # by the projection itself
            return output
        return fake_quantize(output, plan.levels["bits"].to(output.device))
