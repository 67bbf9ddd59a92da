# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The product by kernels that numba compiles, for rows that read the same number of bits or different ones."""

import functools
from typing import ClassVar

from ....kernels.cpu import planes as kernel
from ...dispatch import Implementation, Prepared
from .operation import PLANES_PRODUCT, PlanesCall


MOST_TOKENS = 1024
"""Number of tokens above which it is faster to decode the weight once, on processors without dot products of bytes."""


class Compiled(Implementation[PlanesCall]):
    """Kernels in `kernels/cpu`: `numba_planes.py` for a few tokens, `numba_plane_rows.py` for more."""

    order: ClassVar[int] = 10

    def prepare(self, call: PlanesCall) -> Prepared | None:
        if not kernel.supports(call.x, call.planes):
            return None
        if call.x.shape[:-1].numel() > MOST_TOKENS and not kernel.has_dot_products():
            return None
        return functools.partial(kernel.multiply, *call)


PLANES_PRODUCT.register("compiled", Compiled())
