# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Labels of axes and of their values in figures and pages."""

from collections.abc import Iterable

from ..budget.axes import AXES


def ratio_term(axis: str) -> str:
    """The term of an axis in the net keep rate, such as `token_keep` or `bits / 16`.

    An axis of a saved table that is not registered is written without a scale.
    """
    scale = AXES[axis].scale if axis in AXES else 1
    return axis if scale == 1 else f"{axis} / {scale:g}"


def ratio_terms(axes: Iterable[str]) -> str:
    """The terms of the net keep rate, separated by commas."""
    return ", ".join(map(ratio_term, axes))


def is_integral(axis: str) -> bool:
    """Whether values of an axis are whole numbers; false for an axis that is not registered."""
    return axis in AXES and AXES[axis].is_integral


def level_text(axis: str, level: float) -> str:
    """A level with the name of its axis, such as `token_keep 0.50` or `bits 8`."""
    return f"{axis} {level:g}" if is_integral(axis) else f"{axis} {level:.2f}"
