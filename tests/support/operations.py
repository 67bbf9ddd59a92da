# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Drawn operations on two caches, one of which is read by a fast path."""

from collections.abc import Iterable
from typing import Any

import torch


def assert_same_outputs(fast: Any, plain: Any, operations: Iterable[tuple[str, Any]], scaling: float | None) -> None:
    """Apply operations to both; whenever they attend, the fast path gives what the reference gives."""
    for name, argument in operations:
        if name == "attend":
            outputs = fast.attend("fast", argument, scaling), plain.attend("reference", argument, scaling)
            torch.testing.assert_close(*outputs, atol=1e-5, rtol=0)
        else:
            getattr(fast, name)(argument)
            getattr(plain, name)(argument)
