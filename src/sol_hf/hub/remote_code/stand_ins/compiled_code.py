# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""There is no compiled code to load."""

from typing import Any


def load_kernels(device: Any, dtype: Any, stored: Any = None) -> None:
    """Nothing to do."""
