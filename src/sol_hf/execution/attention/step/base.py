# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The base's own attention, for steps that read all keys."""

from typing import ClassVar

import torch

from ...dispatch import Implementation, Prepared
from .operation import STEP_ATTENTION, StepAttention


class BaseAttention(Implementation[StepAttention]):
    """The attention that the base computes without a plan."""

    order: ClassVar[int] = 0

    def prepare(self, call: StepAttention) -> Prepared | None:
        attention = call.base_attention
        if attention is None:
            return None

        def run() -> torch.Tensor:
            output, call.weights = attention()
            return output

        return run


STEP_ATTENTION.register("base", BaseAttention())
