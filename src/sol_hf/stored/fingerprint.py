# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The form of a base's fingerprint in a config; `hub/fingerprint.py` takes and compares it."""

import math
from collections.abc import Mapping
from typing import Any

from .fields import Text, Whole, is_number, shown


SHAPE_KEYS = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
)
"""What must be the same in another copy of a base."""
SAMPLE_KEYS = ("embedding", "last_layer")
"""Weights of which a few are stored. They differ a little in quantized, fine-tuned and cast copies."""
MOST_SAMPLES = 64


def check_fingerprint(fingerprint: Mapping[str, Any]) -> None:
    """Raise a ValueError if an entry of a fingerprint does not have its form; unknown keys are not looked at."""
    for key in SHAPE_KEYS:
        value, check = fingerprint.get(key), Text(100) if key == "model_type" else Whole(0, 2**31)
        problem = None if value is None else check.problem(value)
        if problem is not None:
            raise ValueError(f"`{key}` in `base_fingerprint` {problem}, got {shown(value)}.")
    for key in SAMPLE_KEYS:
        values = fingerprint.get(key)
        if values is not None and not (
            isinstance(values, list)
            and len(values) <= MOST_SAMPLES
            and all(is_number(value) and math.isfinite(value) for value in values)
        ):
            raise ValueError(
                f"`{key}` in `base_fingerprint` must be a list of up to {MOST_SAMPLES} finite numbers, got "
                f"{shown(values)}."
            )
