# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The base's own experts, with the channels that are not kept set to zero: all weights of the chosen are read."""

import functools
from typing import ClassVar

from ...dispatch import Implementation, Prepared
from ..experts_call import ExpertsCall
from .operation import KEPT_EXPERTS


class OwnExperts(Implementation[ExpertsCall]):
    """The reference for steps that read all neurons."""

    order: ClassVar[int] = 0

    def prepare(self, call: ExpertsCall) -> Prepared | None:
        return functools.partial(call.own, call.kept_input()) if call.neuron_keep is None else None


KEPT_EXPERTS.register("own_experts", OwnExperts())
