# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""An MLP in a decode step: keeps channels of its input (`mlp_keep`) and rounds its output (`bits`).

While a generation runs, each MLP of the base has an instance attribute `forward` that is a [`StepMLP`]. Forward hooks
are not sufficient: they can change the input and the output, but the MLP would still read all of its weights. Another
module in place of the MLP would be visible in `named_modules`, in `state_dict` and to other code with a reference to
the MLP. A [`StepMLP`] carries out the plan of the forward that runs in its thread. Without a plan it calls the MLP's
own forward.

There are several implementations of the MLP over the kept channels, see `kept_channels`. Some of them need copies of
the weights in another layout. A copy is made when it is first needed, and is held by the [`StepMLP`].

The neurons (`neuron_keep`) are chosen by the last projection, a [`StepDown`]: the MLP's own forward comes to it by
itself, and a fast path calls it.
"""

import functools
from collections.abc import Callable

import torch
from torch import nn

from ...errors import UnsupportedAxisError
from ...kernels.cpu import sparse_mlp
from ...selection.quantizers import fake_quantize
from ..plan import ACTIVE, StepPlan
from .copying_part import CopyingPart
from .int8 import INT8_BITS, Int8MLP
from .kept_call import KeptCall
from .kept_channels.operation import KEPT_CHANNELS, MLPCall
from .step_down import StepDown


class StepMLP(CopyingPart):
    """The forward of one MLP while a generation runs.

    Args:
        module (`nn.Module`): An MLP whose forward takes the hidden state alone.
    """

    def __init__(self, module: nn.Module):
        super().__init__(module)
        self.down: StepDown | None = None
        """Its last projection, on bases that can be controlled on `neuron_keep`."""

    def __call__(self, *args: torch.Tensor, **kwargs: torch.Tensor) -> torch.Tensor:
        """The MLP's output for a hidden state `(rows, ..., channels)`, under the plan of this thread's forward."""
        own, context = self.own, ACTIVE.get()
        assert own is not None, "only called while it is installed"
        plan = None if context is None else context.plan
        keep, bits = (None, None) if plan is None else (plan.levels.get("mlp_keep"), plan.levels.get("bits"))
        if plan is None or (keep is None and bits is None):
            return own(*args, **kwargs)
        (x,) = (*args, *kwargs.values())
        keep = None if keep is None else keep.to(x.device)
        bits = None if bits is None else bits.to(x.device)
        if plan.reads_planes:  # by its linear layers, so that their forwards have to be called
            output, bits = self._run(plan, x, keep, own), None
        elif bits is None or plan.bits_backend == "fake":
            output = self._finish(plan, self._run(plan, x, keep, own), bits)
        else:
            output = self._run_int8(plan, x, keep, bits, own)
        for axis, level in (("mlp_keep", keep), ("bits", bits)):
            if level is not None:
                plan.mark_done(axis, self)
        return output

    def int8_copy(self) -> Int8MLP:
        """The copy in int8.

        Raises:
            UnsupportedAxisError: for an MLP that is not on the CPU, or not of a known kind.
        """
        copy = self.copy_of(Int8MLP)
        if copy is None:
            with self._lock:
                self._copies.pop(Int8MLP, None)  # the next call tries again: the reason may be removed
            raise UnsupportedAxisError(
                f"`bits_backend='int8'` needs MLPs of two or three plain linear layers on the CPU, and cannot run "
                f"{type(self.module).__name__}: pass `bits_backend='fake'`."
            )
        return copy

    def _run(self, plan: StepPlan, x: torch.Tensor, keep: torch.Tensor | None, own: Callable) -> torch.Tensor:
        """The MLP over the channels that the plan keeps."""
        if keep is None:
            return own(x)
        last = functools.partial(down.run, plan) if (down := self._planned_down(plan)) else None
        backend = "reference" if plan.reads_planes else plan.backend
        output = KEPT_CHANNELS.run(MLPCall(plan, x, keep, own, self, last), backend)
        assert output is not None, "the MLP's own forward can compute every call"
        return output

    def _finish(self, plan: StepPlan, output: torch.Tensor, bits: torch.Tensor | None) -> torch.Tensor:
        if bits is None:
            return output
        fast = plan.backend != "reference" and sparse_mlp.supports(output)
        return (sparse_mlp.fake_quantize if fast else fake_quantize)(output, bits)

    def _run_int8(
        self, plan: StepPlan, x: torch.Tensor, keep: torch.Tensor | None, bits: torch.Tensor, own: Callable
    ) -> torch.Tensor:
        """Rows of 8 bits and fewer in int8, others as under fake quantization."""
        copy, in_int8 = self.int8_copy(), bits <= INT8_BITS
        if not bool(in_int8.any()):
            return self._finish(plan, self._run(plan, x, keep, own), bits)
        kept = x if keep is None else KeptCall(plan, x, keep, own, self).kept_input()
        down = self._planned_down(plan)
        product = copy(kept, plan.levels["neuron_keep"].to(x.device) if down else None)
        if down:
            plan.mark_done("neuron_keep", down)
        if bool(in_int8.all()):
            return product
        output = self._finish(plan, self._run(plan, x, keep, own), bits)
        return torch.where(in_int8.view(-1, *[1] * (x.dim() - 1)), product, output)

    def _planned_down(self, plan: StepPlan) -> StepDown | None:
        """The last projection, if the plan chooses neurons."""
        return self.down if "neuron_keep" in plan.levels else None
