# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The product by a kernel that numba compiles, which decodes weights in registers."""

import functools
from typing import ClassVar

from ....kernels.cpu import planes as kernel
from ...dispatch import Implementation, Prepared
from .operation import PLANES_PRODUCT, PlanesCall


MOST_TOKENS = 64
"""Number of tokens above which it is faster to decode the weight once."""


class Compiled(Implementation[PlanesCall]):
    """A kernel for a few tokens, see `kernels/cpu/numba_planes.py`."""

    order: ClassVar[int] = 10

    def prepare(self, call: PlanesCall) -> Prepared | None:
        if call.x.shape[:-1].numel() > MOST_TOKENS or not kernel.supports(call.x, call.planes):
            return None
        return functools.partial(kernel.multiply, *call)


PLANES_PRODUCT.register("compiled", Compiled())
