# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What the Triton paths over kept channels and over kept neurons have in common."""

import functools
from typing import ClassVar, Generic, Protocol, TypeVar

import torch

from ...kernels.cuda import triton_support
from ..dispatch import Implementation, Prepared
from .copying_part import WeightCopy
from .kept_call import MOST_TOKENS, KeptCall


Call = TypeVar("Call", bound=KeptCall)
AnyCall = TypeVar("AnyCall", bound=KeptCall, contravariant=True)


class DeviceCopy(WeightCopy, Protocol[AnyCall]):
    """A copy of weights on the device of a base, and what is computed with it."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""

    def compute(self, call: AnyCall) -> torch.Tensor:
        """The output of a call whose input has that dtype."""


class TritonPath(Implementation[Call], Generic[Call]):
    """A copy of weights and its kernel, for forwards of a few tokens.

    The copy may not fit into memory, so only `backend="fast"` makes it.

    Args:
        kind (`type`): Class of the copy.
    """

    order: ClassVar[int] = 20

    def __init__(self, kind: type[DeviceCopy[Call]]):
        self.kind = kind

    def prepare(self, call: Call) -> Prepared | None:
        few = call.tokens <= MOST_TOKENS and triton_support.supports(call.x)
        copy = call.copies.copy_of(self.kind) if few else None
        if copy is None or copy.dtype != call.x.dtype:
            return None
        return functools.partial(copy.compute, call)

    def suits(self, call: Call) -> bool:
        return False
