# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""`sol-hf coverage`: which layers of a base each axis reaches."""

from typing import Annotated

import typer


def coverage(
    base: Annotated[str, typer.Argument(help="folder or Hub id of a base, or smollm2-135m")],
) -> int:
    """Print which decoder layers each axis reaches on a base, or why it reaches none. Every axis runs for two tokens.

    Example: sol-hf coverage smollm2-135m
    """
    from dataclasses import asdict

    from ..evaluation.families.examination import Findings, controlled, examine_axes
    from ..evaluation.families.page import report
    from .loading import load_any

    whole = load_any(base).model.base
    model, found = controlled(whole), Findings()
    examine_axes(model, found)
    dtype = str(whole.dtype).removeprefix("torch.")
    print(report(f"{type(whole).__name__} in {dtype}", asdict(found)))
    return 1 if found.faults else 0
