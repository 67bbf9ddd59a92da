# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Errors that a user can act on; each is also a ValueError."""


class BudgetError(ValueError):
    """A budget that no schedule of the action space can satisfy, or that is malformed."""


class UnsupportedAxisError(ValueError):
    """A base cannot be controlled on an axis; the message names the axis and the reason."""
