# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The product with a weight that is decoded first: it reads the planes, and writes and reads the weight as well."""

import functools
from typing import ClassVar

from ....selection.nested_planes import product
from ...dispatch import Implementation, Prepared
from .operation import PLANES_PRODUCT, PlanesCall


class Decoded(Implementation[PlanesCall]):
    """The reference, in plain torch."""

    order: ClassVar[int] = 0

    def prepare(self, call: PlanesCall) -> Prepared | None:
        return functools.partial(product, *call)


PLANES_PRODUCT.register("decoded", Decoded())
