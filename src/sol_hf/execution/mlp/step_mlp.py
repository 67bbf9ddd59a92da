# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""An MLP in a decode step: keeps channels of its input (`mlp_keep`) and rounds its output (`bits`).

While a generation runs, each MLP of the base has an instance attribute `forward` that is a [`StepMLP`]. Forward hooks
would not do: they can change what goes in and comes out, but cannot keep the MLP from reading all of its weights. A
module in place of the MLP would not do either: it would be seen in `named_modules`, in `state_dict` and by whoever
holds the MLP. A [`StepMLP`] acts on the plan of its own thread's forward; without a plan it is the MLP's own forward.

    reference   zeroes channels, multiplies by all weights, quantizes: plain torch
    masked      the same numbers to the bit, channels and quantization by compiled code
    fast        reads the weights of the kept channels only, for a few rows: see `input_major.py` for the CPU,
                `triton_input_major.py` for CUDA

`backend="fast"` takes the last wherever there is one, `"auto"` where it is measured to be faster than `masked`. Copies
of weights are made when a path first needs them, and belong to this object.
"""

import threading
import weakref
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from ...errors import UnsupportedAxisError
from ...kernels.cpu import sparse_mlp
from ...kernels.cpu.sparse_mlp import KeptChannels
from ...kernels.cuda import triton_support
from ...selection.channels import keep_top_channels, kept_channels
from ...selection.quantizers import fake_quantize
from ..autotune import run_fastest
from ..plan import ACTIVE, StepPlan
from ..step_part import StepPart
from .input_major import InputMajorMLP, keep_channels
from .int8 import INT8_BITS, Int8MLP
from .triton_input_major import TritonMLP
from .weight_copy import MLPCopy


Copy = TypeVar("Copy", bound=MLPCopy)
MOST_LINES = 8
"""Tokens in a forward beyond which all weights are read anyway."""
SHARES = 8
"""The time of the fast path is measured for so many shares of channels that any row keeps."""

_STEP_MLPS: "weakref.WeakValueDictionary[int, StepMLP]" = weakref.WeakValueDictionary()
"""By the id of the module, which its [`StepMLP`] keeps alive."""
_REGISTRY_LOCK = threading.Lock()


class StepMLP(StepPart):
    """What the forward of one MLP does while a generation runs.

    Args:
        module (`nn.Module`): An MLP whose forward takes the hidden state alone.
    """

    wraps_other_forwards = True

    def __init__(self, module: nn.Module):
        super().__init__(module)
        self._copies: dict[type[MLPCopy], MLPCopy | None] = {}
        self._lock = threading.Lock()

    @classmethod
    def of(cls, module: nn.Module) -> "StepMLP":
        """The one for an MLP, as long as anybody has it: all bases with that MLP share the copies of its weights."""
        with _REGISTRY_LOCK:
            part = _STEP_MLPS.get(id(module))
            if part is None:
                part = _STEP_MLPS[id(module)] = cls(module)
            return part

    @property
    def nbytes(self) -> int:
        return sum(copy.nbytes for copy in self._copies.values() if copy is not None)

    def drop_copies(self) -> None:
        with self._lock:
            self._copies = {}

    def install(self) -> Callable[[], None]:
        """Take the place of the MLP's forward, and forget copies of weights that are no longer the MLP's.

        Returns:
            `Callable`: [`StepPart.remove`].
        """
        with self._lock:
            copies = self._copies.items()
            self._copies = {kind: copy for kind, copy in copies if copy is not None and copy.still_fits(self.module)}
        return super().install()

    def __call__(self, *args: torch.Tensor, **kwargs: torch.Tensor) -> torch.Tensor:
        """The MLP's output for a hidden state `(rows, ..., channels)`, under the plan of this thread's forward."""
        own, context = self.own, ACTIVE.get()
        assert own is not None, "it is called only where it is installed"
        plan = None if context is None else context.plan
        keep, bits = (None, None) if plan is None else (plan.levels.get("mlp_keep"), plan.levels.get("bits"))
        if plan is None or (keep is None and bits is None):
            return own(*args, **kwargs)
        (x,) = (*args, *kwargs.values())
        keep = None if keep is None else keep.to(x.device)
        bits = None if bits is None else bits.to(x.device)
        if bits is None or plan.bits_backend == "fake":
            output = self._finish(plan, self._run(plan, x, keep, own), bits)
        else:
            output = self._run_int8(plan, x, keep, bits, own)
        for axis, level in (("mlp_keep", keep), ("bits", bits)):
            if level is not None:
                plan.mark_done(axis, self)
        return output

    def _copy(self, kind: type[Copy]) -> Copy | None:
        """The copy of a kind, made now if need be; `None` where the MLP is none of the known ones."""
        with self._lock:
            if kind not in self._copies:
                replaced = self._replaced is not None or vars(self.module).get("forward", self) is not self
                self._copies[kind] = None if replaced else kind.of(self.module)
            return self._copies[kind]  # type: ignore[return-value]

    def made_copy(self, kind: type[Copy]) -> Copy | None:
        """The copy of a kind, if it is made."""
        return self._copies.get(kind)  # type: ignore[return-value]

    def int8_copy(self) -> Int8MLP:
        """The copy in int8.

        Raises:
            UnsupportedAxisError: for an MLP that is not on the CPU, or not one of the known ones.
        """
        copy = self._copy(Int8MLP)
        if copy is None:
            with self._lock:
                self._copies.pop(Int8MLP, None)  # what stands in the way may be gone next time
            raise UnsupportedAxisError(
                f"`bits_backend='int8'` needs MLPs of two or three plain linear layers on the CPU, and cannot run "
                f"{type(self.module).__name__}: pass `bits_backend='fake'`."
            )
        return copy

    def _keep(self, plan: StepPlan, x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """The input without the channels that the plan drops; no list of them, which would stall an accelerator."""
        if plan.backend != "reference" and sparse_mlp.supports(x):
            return self._choose(plan, x, keep).x
        return keep_top_channels(x, keep)

    def _choose(self, plan: StepPlan, x: torch.Tensor, keep: torch.Tensor) -> KeptChannels:
        if plan.backend != "reference" and sparse_mlp.supports(x):
            return sparse_mlp.keep_top_channels(x, keep)
        return keep_channels(x, kept_channels(x, keep))

    def _run(self, plan: StepPlan, x: torch.Tensor, keep: torch.Tensor | None, own: Callable) -> torch.Tensor:
        """The MLP over the channels that the plan keeps."""
        if keep is None:
            return own(x)
        lines = x.shape[:-1].numel()
        if plan.backend == "fast" and lines <= MOST_LINES and triton_support.supports(x):
            on_device = self._copy(TritonMLP)
            if on_device is not None and on_device.gate.dtype == x.dtype:
                return on_device(x, keep)
        may_read_less = plan.backend == "fast" or plan.is_timed
        if not may_read_less or lines > MOST_LINES or not _may_copy(x):
            return own(self._keep(plan, x, keep))
        kept = self._choose(plan, x, keep)
        copy = self._copy(InputMajorMLP)
        if copy is None or copy.gate.dtype != x.dtype:
            return own(kept.x)
        if plan.backend == "fast":
            return copy(kept)
        share = -(-SHARES * len(kept.listed) // x.shape[-1])
        situation = ("mlp", *copy.gate.shape, copy.up is None, x.dtype, lines, share, torch.get_num_threads())
        return run_fastest(situation, {"masked": lambda: own(kept.x), "fast": lambda: copy(kept)})

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
        product = copy(x if keep is None else self._keep(plan, x, keep))
        if bool(in_int8.all()):
            return product
        output = self._finish(plan, self._run(plan, x, keep, own), bits)
        return torch.where(in_int8.view(-1, *[1] * (x.dim() - 1)), product, output)


def _may_copy(x: torch.Tensor) -> bool:
    """Whether a forward is one that the copies serve: on the CPU, without gradient, in the dtype of the weights."""
    return x.device.type == "cpu" and not x.requires_grad and not torch.is_autocast_enabled("cpu")
