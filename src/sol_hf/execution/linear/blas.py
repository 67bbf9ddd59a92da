# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The product as torch computes it: in float32 by the BLAS that it was built with."""

import functools
from typing import ClassVar

from torch.nn import functional

from ..dispatch import Implementation, Prepared
from .operation import LINEAR, LinearCall


class Blas(Implementation[LinearCall]):
    """`functional.linear`, the fastest with many tokens."""

    order: ClassVar[int] = 0

    def prepare(self, call: LinearCall) -> Prepared | None:
        return functools.partial(functional.linear, *call)


LINEAR.register("blas", Blas())
