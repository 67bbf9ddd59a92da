# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Attention over all keys under a mask, without copies: for short contexts, where reading all keys is cheap."""

import functools
from typing import ClassVar

import torch

from ...dispatch import Implementation, Prepared
from ..grouped_queries import attend_grouped
from .operation import STEP_ATTENTION, StepAttention
from .selected_keys import select_keys


FEW_KEYS = 64
LEAST_SHARE = 0.5
"""Mean `token_keep` from which on it is faster with any number of keys."""


class Masked(Implementation[StepAttention]):
    """Hides the keys that are not selected. With long contexts it is slower than the reference."""

    order: ClassVar[int] = 20
    is_fallback: ClassVar[bool] = True

    def prepare(self, call: StepAttention) -> Prepared | None:
        return None if call.plan.token_keep is None else functools.partial(attend_masked, call)

    def suits(self, call: StepAttention) -> bool:
        """Gathering copies what is read, so reading all keys is faster if there are few, or half of them are read."""
        return call.is_long and (call.key.shape[2] <= FEW_KEYS or call.plan.kept_share >= LEAST_SHARE)


def attend_masked(call: StepAttention) -> torch.Tensor:
    """Attention of one new token per row over all keys, those that are not selected masked.

    Returns:
        `torch.Tensor` of shape `(rows, 1, heads, value_dim)`.
    """
    candidates, selection = select_keys(call)
    mask, heads = candidates.mask_of(selection), call.query.shape[1]
    if mask.shape[1] not in (1, heads):
        mask = mask.repeat_interleave(heads // mask.shape[1], dim=1)
    return attend_grouped(call.query, call.key, call.value, mask[:, :, None], call.scaling, call.changes)


STEP_ATTENTION.register("masked", Masked())
