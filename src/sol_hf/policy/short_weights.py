# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Weights of a policy that are bfloat16 numbers, which compiled code reads in half the bytes.

Products with them are the same to the bit, since a bfloat16 number is a float32 number. The short copies are used as
long as the weights do not change. Of a change through `.data` torch takes no note: a sample of the numbers shows it.
"""

import threading
from typing import Any

import torch
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary


SAMPLES = 256
"""Numbers of a weight that are compared."""
_COPIES = WeakTensorKeyDictionary()
"""The copies of all weights that have one, for all threads."""
_LOCK = threading.Lock()


class ShortWeights:
    """The short copies of the weights of a policy, as far as these are bfloat16 numbers."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[torch.Tensor, torch.Tensor | None]] = {}
        self._versions: list[int] = []

    def of(self, weight: torch.Tensor) -> torch.Tensor:
        """What to read for a weight: a copy in bfloat16 of the same numbers, or itself."""
        if id(weight) not in self._known:
            self._known[id(weight)] = weight, _copy_of(weight)
            self._versions = self._versions_now()
        short = self._known[id(weight)][1]
        return weight if short is None else short

    def are_current(self, looks_at_numbers: bool) -> bool:
        """Whether the weights are still those that were copied.

        Args:
            looks_at_numbers (`bool`): Whether to compare a sample of the numbers, too.
        """
        if self._versions != self._versions_now():
            return False
        copied = [(weight, short) for weight, short in self._known.values() if short is not None]
        return not looks_at_numbers or all(torch.equal(_sample(short).float(), _sample(x)) for x, short in copied)

    def _versions_now(self) -> list[int]:
        return [0 if weight.is_inference() else weight._version for weight, _ in self._known.values()]


def products_of(policy: Any) -> list[nn.Linear]:
    """The linear layers of a policy whose weights take most of its bytes."""
    return [policy.input_projection, policy.action_head, *(x for x in policy.layers.modules() if type(x) is nn.Linear)]


@torch.no_grad()
def round_products(policy: Any) -> None:
    """Round the weights of [`products_of`] to numbers in bfloat16, in place."""
    for module in products_of(policy):
        module.weight.copy_(module.weight.bfloat16())


def _copy_of(weight: torch.Tensor) -> torch.Tensor | None:
    """The numbers of a weight in bfloat16; `None` if some are no bfloat16 numbers."""
    with _LOCK:
        copied = _COPIES.get(weight)
        if copied is None or not torch.equal(copied.float(), weight):
            copied = weight.detach().bfloat16()
            if not torch.equal(copied.float(), weight):
                return None
            _COPIES[weight] = copied
        return copied


def _sample(weight: torch.Tensor) -> torch.Tensor:
    numbers = weight.detach().view(-1)
    return numbers[:: max(1, len(numbers) // SAMPLES) | 1]
