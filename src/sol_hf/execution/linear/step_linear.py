# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The linear layers of a base in a decode step, on the CPU.

The time of a product with few tokens is the time to read the weights. torch's own code for float32 is optimized for
many tokens, but a decode step has one token per row, and a KV refresh one per step of the episode. Other
implementations read the same weights faster ([measured](docs/performance.md)). Their results differ by rounding, since
they add up in another order.

While a base is instrumented, its linear layers have an instance attribute `forward` that is a [`StepLinear`]. It is
used in decode steps and KV refreshes only, and not under `backend="reference"`, unless a step reads planes of the
weights.
"""

import platform
import threading
import weakref
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from ...selection.nested_planes import WIDTHS, NestedPlanes, encode
from ..mlp.weight_copy import Fingerprint
from ..plan import ACTIVE
from ..step_part import StepPart
from .operation import LINEAR, LinearCall
from .planes.rows import multiply_rows


PRODUCTS = (nn.Linear, Conv1D)
"""Classes whose forward is a product with a weight."""
_IMPORTANCE: "weakref.WeakKeyDictionary[nn.Module, torch.Tensor]" = weakref.WeakKeyDictionary()
"""Mean squares of the inputs of layers by channel, by which the scales of their planes are chosen."""
_STEP_LINEARS: "weakref.WeakValueDictionary[int, StepLinear]" = weakref.WeakValueDictionary()
"""By the id of the module. The [`StepLinear`] holds a reference to the module, so that its id stays valid."""
_REGISTRY_LOCK = threading.Lock()


LEAST_WEIGHTS = 1 << 16
"""Number of weights below which the overhead of choosing an implementation exceeds the gain."""
MOST_TOKENS = 256
"""Number of tokens in a forward above which all implementations are equally fast."""
IS_MEASURED = platform.machine().lower() in ("x86_64", "amd64")
"""Other processors were not measured."""


def supports(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether `x` `(..., channels)` and a `weight` `(outputs, channels)` have other implementations than torch's."""
    plain = type(weight) in (torch.Tensor, nn.Parameter) and weight.is_contiguous()
    return (
        plain
        and x.shape[-1] == weight.shape[1]
        and x.dtype == weight.dtype
        and x.dtype in (torch.float32, torch.bfloat16)
        and x.device.type == weight.device.type == "cpu"
        and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
        and not torch.is_autocast_enabled("cpu")
        and IS_MEASURED
    )


def matrix_of(module: nn.Module) -> torch.Tensor:
    """The weight `(outputs, channels)` of a layer of `PRODUCTS`; that of `Conv1D` is transposed."""
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return weight.t() if isinstance(module, Conv1D) else weight


class StepLinear(StepPart):
    """The forward of one linear layer while its base is instrumented.

    Args:
        module (`nn.Module`): The layer, of a class in `PRODUCTS`.
    """

    is_plain_product = True
    """Read by the MLP's fast paths: this forward computes only the product with the weights, and adds the bias."""

    def __init__(self, module: nn.Module):
        super().__init__(module)
        weight = getattr(module, "weight", None)
        self.is_large = type(module) is nn.Linear and weight is not None and weight.numel() >= LEAST_WEIGHTS
        """Whether other implementations than torch's are worth their overhead."""
        self.least_bits: int | None = None
        """Fewest bits in which planes of the weight are read; `None` for a layer that no step reads in planes."""
        self._planes: NestedPlanes | None = None
        self._fingerprint: Fingerprint | None = None
        self._lock = threading.Lock()

    @classmethod
    def of(cls, module: nn.Module) -> "StepLinear":
        """The [`StepLinear`] of a layer. Bases that share the layer also share this object and the planes."""
        with _REGISTRY_LOCK:
            part = _STEP_LINEARS.get(id(module))
            if part is None:
                part = _STEP_LINEARS[id(module)] = cls(module)
            return part

    @classmethod
    def all_of(cls, base: nn.Module) -> "tuple[StepLinear, ...]":
        """One for every linear layer of a base that is large enough, or that a step may read in planes."""
        parts = [cls.of(module) for module in base.modules() if type(module) in PRODUCTS]
        return tuple(part for part in parts if part.is_large or part.least_bits is not None)

    @property
    def nbytes(self) -> int:
        return 0 if self._planes is None else self._planes.nbytes

    @property
    def copies(self) -> Sequence[NestedPlanes]:
        return () if self._planes is None else (self._planes,)

    def drop_copies(self) -> None:
        with self._lock:
            self._planes = self._fingerprint = None

    def made_planes(self) -> NestedPlanes | None:
        """The planes of the weight, if there are any."""
        return self._planes

    def planes(self) -> NestedPlanes:
        """The planes of the weight as it is now, made if there are none.

        Raises:
            ValueError: for a weight that is not finite.
        """
        with self._lock, torch.inference_mode(False), torch.no_grad():
            weight = matrix_of(self.module)
            now = Fingerprint.of(weight)
            if self._planes is None or now != self._fingerprint:
                self._planes, self._fingerprint = encode(weight, _IMPORTANCE.get(self.module)), now
            return self._planes

    def choose_scales(self, importance: torch.Tensor) -> None:
        """Let the next planes have scales chosen by the mean square of every input channel, `(channels,)`."""
        with self._lock:
            _IMPORTANCE[self.module] = importance
            self._planes = self._fingerprint = None

    def __call__(self, input: torch.Tensor) -> torch.Tensor:
        """The layer's output `(..., outputs)` for an input `(..., channels)`."""
        context = ACTIVE.get()
        if context is None or context.told is None or self.least_bits is None or not context.told.reads_planes:
            return self._multiply(input)
        plan = context.told
        plan.mark_done("bits", self)
        if not input.numel():  # the LM head, where logits are not needed
            return self._multiply(input)
        planes, bias = self._planes or self.planes(), self.module.bias
        assert bias is None or isinstance(bias, torch.Tensor)
        least = self.least_bits if context.refresh is None else max(WIDTHS)
        return multiply_rows(plan, input, planes, least, bias, matrix_of(self.module), self._multiply)

    def _multiply(self, input: torch.Tensor) -> torch.Tensor:
        """The product with the original weights."""
        module, context = self.module, ACTIVE.get()
        if not self.is_large:
            assert self.own is not None, "only called while it is installed"
            return self.own(input)
        assert isinstance(module, nn.Linear)
        tokens = input.numel() // max(1, input.shape[-1])
        if (
            context is None
            or not context.may_round_differently
            or not 0 < tokens <= MOST_TOKENS
            or not supports(input, module.weight)
        ):
            return functional.linear(input, module.weight, module.bias)
        backend = "auto" if context.told is None else context.told.backend
        output = LINEAR.run(LinearCall(input, module.weight, module.bias), backend)
        assert output is not None, "torch's own product can compute every call"
        return output
