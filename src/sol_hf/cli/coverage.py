# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""`sol-hf coverage`: which layers of a base each axis reaches."""

from typing import Annotated

import typer


def coverage(
    base: Annotated[str, typer.Argument(help="folder or Hub id of a base, or smollm2-135m")],
) -> int:
    """Print which decoder layers each axis reaches on a base, or why it reaches none.

    Example: sol-hf coverage smollm2-135m
    """
    from ..budget.axes import AXES
    from ..configuration_sol import SOLConfig
    from ..modeling_sol import SOLForCausalLM
    from .loading import SMALL, load_any

    loaded = load_any(base)
    levels = {axis: [AXES[axis].default_levels[0], AXES[axis].default_levels[-1]] for axis in AXES}
    model = SOLForCausalLM.from_base(loaded.model.base, SOLConfig(**levels, **SMALL))
    print(model.coverage())
    return 0
