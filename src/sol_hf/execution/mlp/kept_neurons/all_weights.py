# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The base's own projection, with the neurons that are not kept set to zero: it reads all weights."""

import functools
from typing import ClassVar

from ...dispatch import Implementation, Prepared
from ..kept_call import KeptCall
from .operation import KEPT_NEURONS


class AllWeights(Implementation[KeptCall]):
    """The reference. Under other backends compiled code chooses the neurons; the result is the same to the bit."""

    order: ClassVar[int] = 0

    def prepare(self, call: KeptCall) -> Prepared | None:
        return functools.partial(call.own, call.kept_input())


KEPT_NEURONS.register("all_weights", AllWeights())
