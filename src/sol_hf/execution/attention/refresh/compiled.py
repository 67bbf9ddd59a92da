# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Attention by a kernel that numba compiles, in float32 and bfloat16."""

import functools
from typing import ClassVar

from ....kernels.cpu import chunk_attention
from ...dispatch import Implementation, Prepared
from .operation import REFRESH_ATTENTION, RefreshAttention


LEAST_KEYS = 512
"""Least number of keys for which it was measured to be faster."""


class Compiled(Implementation[RefreshAttention]):
    """A kernel for a few tokens and many keys, see `kernels/cpu/numba_chunk_attention.py`."""

    order: ClassVar[int] = 10

    def prepare(self, call: RefreshAttention) -> Prepared | None:
        mask, tensors = call.group_mask, (call.query, call.key, call.value)
        if mask is None or not chunk_attention.supports(*tensors, mask):
            return None
        return functools.partial(chunk_attention.attend_chunk, *tensors, mask, call.scaling)

    def suits(self, call: RefreshAttention) -> bool:
        is_long = call.query.device.type == "cpu" and call.key.shape[2] >= LEAST_KEYS
        return is_long and chunk_attention.fills_columns(call.query, call.key)


REFRESH_ATTENTION.register("compiled", Compiled())
