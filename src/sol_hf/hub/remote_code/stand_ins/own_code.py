# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A policy that is saved by this file gets this file as its code."""

from pathlib import Path


def flat_code() -> str:
    """The text of this file."""
    return Path(__file__).read_text(encoding="utf-8")
