# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Errors that a user can act on; each is also one of Python's own."""

from collections.abc import Mapping, Sequence


class BudgetError(ValueError):
    """A budget that no schedule of the action space can satisfy, or that is malformed."""


class UnsupportedAxisError(ValueError):
    """A base cannot be controlled on an axis; the message names the axis and the reason."""


class PlanNotExecutedError(RuntimeError):
    """A decode step was not computed as planned: parts of the base that had to carry out an axis did not.

    Args:
        left_out (`Mapping[str, Sequence[str]]`): Per axis the names of those parts.
    """

    def __init__(self, left_out: Mapping[str, Sequence[str]]):
        self.left_out = {axis: list(names) for axis, names in left_out.items()}
        listed = "; ".join(f"`{axis}` in {_shorten(names)}" for axis, names in self.left_out.items())
        super().__init__(
            f"A decode step was not computed under its budget: the base did not carry out {listed}. Its modules were "
            "replaced, run in another thread, or do not use the cache that they were given. Leave these axes out of "
            "the budget, and see `model.coverage()`."
        )

    def __reduce__(self) -> tuple:
        return type(self), (self.left_out,)


def _shorten(names: Sequence[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
