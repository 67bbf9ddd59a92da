# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The last projection of an MLP in a step with a `neuron_keep`, and all of its implementations."""

from ...dispatch import Operation
from ..kept_call import KeptCall


KEPT_NEURONS: Operation[KeptCall] = Operation(
    "implementation of a last projection over kept neurons", package=__package__
)
"""Implementations of a projection over the largest channels of its input by name."""
