# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The elastic MLP: applies `mlp_keep` to an MLP's input and `bits` to its output, by the reference or a fast path.

While a base is instrumented, each of its MLPs has an instance attribute `forward` that is an [`ElasticMLP`]; after
that it has none again. Hooks could change what goes in and what comes out, but not keep the MLP from reading all of
its weights. An exchanged child module would, but would show in `named_modules`, in `state_dict` and to whoever holds
the child. The replacement acts on the [`StepPlan`] of its own thread's forward; in any other it is the MLP's own.

    reference   zeroes channels, multiplies by all weights, quantizes: plain torch
    masked      the same numbers to the bit, channels and quantization by compiled code
    fast        reads the weights of the kept channels only, for a few rows: see `input_major_mlp` for the CPU,
                `triton_mlp_copy` for CUDA

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
from .input_major import InputMajorMLP, keep_channels
from .int8 import INT8_BITS, Int8MLP
from .triton_input_major import TritonMLP
from .weight_copy import MLPCopy


Copy = TypeVar("Copy", bound=MLPCopy)
MOST_LINES = 8
"""Tokens in a forward beyond which all weights are read anyway."""
SHARES = 8
"""The time of the fast path is measured for so many shares of channels that any row keeps."""

_ELASTIC_MLPS: "weakref.WeakValueDictionary[int, ElasticMLP]" = weakref.WeakValueDictionary()
"""By the id of the module, which its [`ElasticMLP`] keeps alive."""
_REGISTRY_LOCK = threading.Lock()


class ElasticMLP:
    """What the forward of one MLP does while its base is instrumented.

    Args:
        module (`nn.Module`): An MLP whose forward takes the hidden state alone.
    """

    def __init__(self, module: nn.Module):
        self.module = module
        self._own: Callable | None = None
        self._before: dict[str, Callable] = {}
        self._copies: dict[type[MLPCopy], MLPCopy | None] = {}
        self._lock = threading.Lock()

    @classmethod
    def of(cls, module: nn.Module) -> "ElasticMLP":
        """The one for an MLP, as long as anybody has it: all bases with that MLP share the copies of its weights."""
        with _REGISTRY_LOCK:
            elastic = _ELASTIC_MLPS.get(id(module))
            if elastic is None:
                elastic = _ELASTIC_MLPS[id(module)] = cls(module)
            return elastic

    def __reduce__(self) -> str:
        raise TypeError("A base cannot be copied or pickled during a generation: do it before or after.")

    @property
    def nbytes(self) -> int:
        """Memory of the copies that were made."""
        return sum(copy.nbytes for copy in self._copies.values() if copy is not None)

    def drop_copies(self) -> None:
        """Free the copies."""
        with self._lock:
            self._copies = {}

    def install(self) -> Callable[[], None]:
        """Take the place of the MLP's forward, and forget copies of weights that are no longer the MLP's.

        Returns:
            `Callable`: [`ElasticMLP.remove`].
        """
        with self._lock:
            copies = self._copies.items()
            self._copies = {kind: copy for kind, copy in copies if copy is not None and copy.still_fits(self.module)}
        self._own = self.module.forward
        self._before = {"forward": self._own} if "forward" in vars(self.module) else {}
        self.module.forward = self
        return self.remove

    def remove(self) -> None:
        """Undo [`install`]; nothing happens if it was not called."""
        if vars(self.module).get("forward") is self:
            del self.module.forward
            vars(self.module).update(self._before)
            self._before = {}

    def __call__(self, *args: torch.Tensor, **kwargs: torch.Tensor) -> torch.Tensor:
        """The MLP's output for a hidden state `(rows, ..., channels)`, under the plan of this thread's forward."""
        own, context = self._own, ACTIVE.get()
        assert own is not None, "an elastic MLP is called only where it is installed"
        plan = None if context is None else context.plan
        if plan is None or (plan.mlp_keep is None and plan.bits is None):
            return own(*args, **kwargs)
        (x,) = (*args, *kwargs.values())
        bits = None if plan.bits is None else plan.bits.to(x.device)
        if bits is None or plan.bits_backend == "fake":
            return self._finish(plan, self._run(plan, x, own), bits)
        return self._run_int8(plan, x, bits, own)

    def _copy(self, kind: type[Copy]) -> Copy | None:
        """The copy of a kind, made now if need be; `None` where the MLP is none of the known ones."""
        with self._lock:
            if kind not in self._copies:
                replaced = self._before or vars(self.module).get("forward", self) is not self
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

    def _keep(self, plan: StepPlan, x: torch.Tensor) -> torch.Tensor:
        """The input without the channels that the plan drops; no list of them, which would stall an accelerator."""
        if plan.backend != "reference" and sparse_mlp.supports(x):
            return self._choose(plan, x).x
        assert plan.mlp_keep is not None
        return keep_top_channels(x, plan.mlp_keep.to(x.device))

    def _choose(self, plan: StepPlan, x: torch.Tensor) -> KeptChannels:
        assert plan.mlp_keep is not None
        fraction = plan.mlp_keep.to(x.device)
        if plan.backend != "reference" and sparse_mlp.supports(x):
            return sparse_mlp.keep_top_channels(x, fraction)
        return keep_channels(x, kept_channels(x, fraction))

    def _run(self, plan: StepPlan, x: torch.Tensor, own: Callable) -> torch.Tensor:
        """The MLP over the channels that the plan keeps."""
        if plan.mlp_keep is None:
            return own(x)
        lines = x.shape[:-1].numel()
        if plan.backend == "fast" and lines <= MOST_LINES and triton_support.supports(x):
            on_device = self._copy(TritonMLP)
            if on_device is not None and on_device.gate.dtype == x.dtype:
                return on_device(x, plan.mlp_keep.to(x.device))
        # Rollouts are compared and resumed to the bit, which a choice by the clock would spoil.
        reads_all = plan.backend == "reference" or (plan.backend == "auto" and plan.is_fanned_out)
        if reads_all or lines > MOST_LINES or not _may_copy(x):
            return own(self._keep(plan, x))
        kept = self._choose(plan, x)
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

    def _run_int8(self, plan: StepPlan, x: torch.Tensor, bits: torch.Tensor, own: Callable) -> torch.Tensor:
        """Rows of 8 bits and fewer in int8, others as under fake quantization."""
        copy, in_int8 = self.int8_copy(), bits <= INT8_BITS
        if not bool(in_int8.any()):
            return self._finish(plan, self._run(plan, x, own), bits)
        product = copy(x if plan.mlp_keep is None else self._keep(plan, x))
        if bool(in_int8.all()):
            return product
        output = self._finish(plan, self._run(plan, x, own), bits)
        return torch.where(in_int8.view(-1, *[1] * (x.dim() - 1)), product, output)


def _may_copy(x: torch.Tensor) -> bool:
    """Whether a forward is one that the copies serve: on the CPU, without gradient, in the dtype of the weights."""
    return x.device.type == "cpu" and not x.requires_grad and not torch.is_autocast_enabled("cpu")
