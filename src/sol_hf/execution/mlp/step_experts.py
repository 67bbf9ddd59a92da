# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The experts of a mixture in a decode step.

transformers keeps the weights of all experts of a layer in one module, whose forward gets the hidden states and what
the router has chosen. A [`StepExperts`] replaces this forward: the router, which comes before it, sees the whole
hidden state, so that the choice of experts does not change. The experts then read the largest channels (`mlp_keep`)
and the largest neurons of each chosen expert (`neuron_keep`), and their sum is rounded (`bits`).
"""

from collections.abc import Callable

import torch

from ...selection.quantizers import fake_quantize
from ..plan import ACTIVE, StepPlan
from .copying_part import CopyingPart
from .expert_layout import ExpertLayout
from .experts_call import ExpertsCall
from .kept_experts.operation import KEPT_EXPERTS


class StepExperts(CopyingPart):
    """The forward of the module of all experts of a layer while a generation runs.

    Args:
        module (`nn.Module`): Its forward takes hidden states `(tokens, channels)`, or `(experts * tokens, channels)`,
            and further arguments, and returns as many.
    """

    def __call__(self, *args: torch.Tensor, **kwargs: torch.Tensor) -> torch.Tensor:
        """The experts' output, under the plan of this thread's forward."""
        own, context = self.own, ACTIVE.get()
        assert own is not None, "only called while it is installed"
        plan = None if context is None else context.plan
        levels = {} if plan is None else {axis: plan.levels[axis] for axis in AXES if axis in plan.levels}
        if plan is None or not levels:
            return own(*args, **kwargs)
        if not args:  # the hidden states come first, by position or by name
            name, x = next(iter(kwargs.items()))
            return self._run(plan, levels, x, lambda kept: own(**{**kwargs, name: kept}), tuple(kwargs.values()))
        return self._run(plan, levels, args[0], lambda kept: own(kept, *args[1:], **kwargs), (*args, *kwargs.values()))

    def _run(
        self,
        plan: StepPlan,
        levels: dict[str, torch.Tensor],
        x: torch.Tensor,
        own: Callable[[torch.Tensor], torch.Tensor],
        arguments: tuple[torch.Tensor, ...],
    ) -> torch.Tensor:
        flat = x.flatten(0, -2)
        per_token = {axis: _repeated(level.to(x.device), len(flat)) for axis, level in levels.items()}
        keep, neurons = per_token.get("mlp_keep"), per_token.get("neuron_keep")
        call = ExpertsCall(plan, x, keep, neurons, own, self, arguments[1:])
        output = KEPT_EXPERTS.run(call, "reference" if plan.reads_planes else plan.backend)
        assert output is not None, "the module's own forward, or plain torch, can compute every call"
        if "bits" in levels and not plan.reads_planes:
            output = fake_quantize(output.flatten(0, -2), per_token["bits"]).view_as(output)
        for axis in levels:
            plan.mark_done(axis, self)
        return output

    @property
    def has_known_layout(self) -> bool:
        """Whether the module says how its weights are laid out."""
        return ExpertLayout.of(self.module) is not None


AXES = ("mlp_keep", "neuron_keep", "bits")


def _repeated(level: torch.Tensor, tokens: int) -> torch.Tensor:
    """Levels `(rows,)` of a step for tokens `(tokens,)`: one of every row, for each expert or once."""
    if tokens % len(level):
        raise RuntimeError(
            f"The experts of the base got {tokens} tokens in a step of {len(level)} rows, so that their rows are not "
            "known: leave `mlp_keep`, `neuron_keep` and `bits` out of the budget."
        )
    return level.repeat(tokens // len(level))
