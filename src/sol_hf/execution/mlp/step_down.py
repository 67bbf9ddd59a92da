# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The last projection of an MLP in a decode step: reads the weights of the largest neurons (`neuron_keep`).

Whatever computes the neurons runs before it: the MLP's own forward, or a fast path of [`StepMLP`]. Without a plan for
the axis it calls the projection's own forward, which may be that of a [`StepLinear`] or of another library.
"""

from typing import ClassVar

import torch

from ..plan import ACTIVE, StepPlan
from .copying_part import CopyingPart
from .kept_call import KeptCall
from .kept_neurons.operation import KEPT_NEURONS


class StepDown(CopyingPart):
    """The forward of one last projection while a generation runs.

    Args:
        module (`nn.Module`): A linear layer, `Conv1D`, or an adapter around one.

    Class attributes:
        axis (`str`): The axis that chooses the inputs that it reads.
    """

    axis: ClassVar[str] = "neuron_keep"
    change_name: ClassVar[str] = "last projection"

    def __call__(self, *args: torch.Tensor, **kwargs: torch.Tensor) -> torch.Tensor:
        """The projection's output for neurons `(rows, ..., neurons)`, under the plan of this thread's forward."""
        context = ACTIVE.get()
        plan = None if context is None else context.plan
        if plan is None or self.axis not in plan.levels:
            assert self.own is not None, "only called while it is installed"
            return self.own(*args, **kwargs)
        (neurons,) = (*args, *kwargs.values())
        return self.run(plan, neurons)

    def run(self, plan: StepPlan, neurons: torch.Tensor) -> torch.Tensor:
        """The projection's output for the inputs that a plan with a level of its axis keeps.

        Args:
            plan ([`StepPlan`]): The plan.
            neurons (`torch.Tensor` of shape `(rows, ..., neurons)`): Input of the projection.
        """
        assert self.own is not None, "only called while it is installed"
        keep = plan.levels[self.axis].to(neurons.device)
        backend = "reference" if plan.reads_planes else plan.backend
        output = KEPT_NEURONS.run(KeptCall(plan, neurons, keep, self.own, self), backend)
        assert output is not None, "the projection's own forward can compute every call"
        plan.mark_done(self.axis, self)
        return output

    @property
    def is_plain_product(self) -> bool:
        """Read by the MLP's fast paths: whether no other library has replaced the projection's forward."""
        return self._replaced is None or getattr(self._replaced, "is_plain_product", False)

    def computes_something_else(self) -> bool:
        return not self.is_plain_product or vars(self.module).get("forward", self) is not self
