# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The policy runs by its modules."""

from typing import Any


def program_of(policy: Any, rows: int, is_new: bool = True, is_call: bool = True) -> Any:
    """A program for a step of the policy; `None` where its modules have to run."""
    return None
