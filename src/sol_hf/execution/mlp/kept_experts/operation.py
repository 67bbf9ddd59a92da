# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The experts of a layer in a step, and all of their implementations."""

from ...dispatch import Operation
from ..experts_call import ExpertsCall


KEPT_EXPERTS: Operation[ExpertsCall] = Operation("implementation of experts over kept channels", package=__package__)
"""Implementations of experts over the largest channels and neurons by name."""
