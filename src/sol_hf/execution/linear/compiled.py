# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The product by a kernel that numba compiles: up to 32 tokens in float32, up to 8 in bfloat16."""

import functools
from typing import ClassVar

from ...kernels.cpu import linear as kernel
from ..dispatch import Implementation, Prepared
from .operation import LINEAR, LinearCall


class Compiled(Implementation[LinearCall]):
    """A kernel that loads weights ahead of their use, see `kernels/cpu/numba_linear.py`."""

    order: ClassVar[int] = 20

    def prepare(self, call: LinearCall) -> Prepared | None:
        if not kernel.supports(call.x, call.weight):
            return None
        return functools.partial(kernel.multiply, *call)


LINEAR.register("compiled", Compiled())
