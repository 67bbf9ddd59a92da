# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The names of the budget options of `generate` and `score`. Imports nothing large, so that a help can list them."""

from typing import Any

from ..budget.axes import AXES


STORED_DEFAULTS: dict[str, Any] = {
    "compute_unit": None,
    "budget_mode": "hard",
    "budget_horizon": "generation",
    "exact": False,
    "kv_refresh": True,
    "action_temperature": 1.0,
    "do_sample_actions": False,
    "backend": "auto",
    "bits_backend": "fake",
    "max_plane_bytes": None,
    "kv_dtype": None,
}
"""Options other than the budget that a generation config may hold, and their defaults."""
UNSTORED = ("budget", "controller", "action_processors", "cuda_graphs", "lossless", "measure_agreement")
"""Options that can only be passed to a call."""


def stored_names() -> tuple[str, ...]:
    """Names of the options that a generation config may hold: `compute`, all registered axes, [`STORED_DEFAULTS`]."""
    return ("compute", *AXES, *STORED_DEFAULTS)


def option_names() -> tuple[str, ...]:
    """Names of all budget options of `generate` and `score`."""
    return (*stored_names(), *UNSTORED)
