# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Under what a calibration table was measured: a share of bytes or time is true of a context, a dtype, a machine."""

import reprlib
from collections.abc import Mapping
from typing import Any

from .calibration import UNITS


CONDITIONS: dict[str, type] = {
    "context_length": int,
    "dtype": str,
    "bits_backend": str,
    "budget_mode": str,
    "budget_horizon": str,
    "kv_refresh": str,
    "machine": str,
    "threads": int,
}
"""What is stored of a table, and the types of the values."""
LONGEST = 200


def check_conditions(conditions: Any) -> None:
    """Raise a ValueError for stored conditions with an unknown unit or name, or a value that it cannot have.

    Args:
        conditions (`Mapping[str, Mapping[str, Any]]`): By unit, then by name.
    """
    for unit, named in conditions.items():
        if unit not in UNITS or not isinstance(named, Mapping):
            raise ValueError(
                f"`calibration_conditions` has an object for each of {', '.join(UNITS)}, got {reprlib.repr(unit)}: "
                f"{reprlib.repr(named)}."
            )
        for name, value in named.items():
            kind = CONDITIONS.get(name)
            if kind is None or isinstance(value, bool) or not isinstance(value, kind) or len(str(value)) > LONGEST:
                raise ValueError(
                    f"`calibration_conditions` has {', '.join(CONDITIONS)}, whole numbers or short strings, got "
                    f"{reprlib.repr(name)}: {reprlib.repr(value)}."
                )


def in_words(unit: str, conditions: Mapping[str, Any] | None = None) -> str:
    """A unit and the conditions of its table, such as `share of the bytes of a dense step (dtype float32)`."""
    if not conditions:
        return UNITS[unit]
    return f"{UNITS[unit]} ({', '.join(f'{name} {value}' for name, value in sorted(conditions.items()))})"
