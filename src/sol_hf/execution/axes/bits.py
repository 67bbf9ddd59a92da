# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The axis `bits`: the output of MLPs is rounded to a number of bits, or the MLP runs in int8."""

from ..executors import register_executor
from ..mlp.executor import MLPExecutor


@register_executor("bits")
class BitsExecutor(MLPExecutor):
    """Every MLP rounds its output to the number of bits in the plan.

    Args:
        base (`PreTrainedModel`): The base.
    """

    def check_backend(self, bits_backend: str) -> None:
        if bits_backend == "int8":
            for mlp in self.mlps:
                mlp.int8_copy()
