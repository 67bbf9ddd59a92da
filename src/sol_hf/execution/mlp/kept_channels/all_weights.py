# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The base's own MLP, with the channels that are not kept set to zero: it reads all weights."""

import functools
from typing import ClassVar

from ...dispatch import Implementation, Prepared
from .operation import KEPT_CHANNELS, MLPCall


class AllWeights(Implementation[MLPCall]):
    """The reference. Under other backends compiled code chooses the channels; the result is the same to the bit."""

    order: ClassVar[int] = 0

    def prepare(self, call: MLPCall) -> Prepared | None:
        return functools.partial(call.own, call.kept_input())


KEPT_CHANNELS.register("all_weights", AllWeights())
